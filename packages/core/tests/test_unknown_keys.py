"""Unknown keys are answered with the same setting in our words, which the configuration accepts."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import pytest
import yaml
from pydantic import ValidationError

import vfm
from vfm.base import error_lines
from vfm.base.unknown_keys import MEANINGS
from vfm.eval.classify.stages import ZeroShot
from vfm.flow.recipe.recipe import parse_recipe
from vfm.interfaces import Training

PAIRS = [(meaning, word) for meaning in MEANINGS for word in meaning.words.split()]


class PlainTraining(Training):
    """The settings that all trainings have."""

    kind: Literal["plain.train"]
    work: ClassVar[str] = "plain:train"


def answers(settings: dict[str, object]) -> list[str]:
    """List the messages about wrong settings of a training."""
    try:
        PlainTraining.model_validate({"kind": "plain.train", "name": "a", "steps": 3, **settings})
    except ValidationError as error:
        return [line for _, line in error_lines(error, PlainTraining)]
    return []


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"batch_size": 64}, "'global_batch_size: 64' (over all processes)"),
        ({"batch-size": 64}, "'global_batch_size: 64' (over all processes)"),
        ({"learning_rate": 1e-5}, "'lr: 1e-05'"),
        ({"wd": 0.1}, "'optimizer: {weight_decay: 0.1}'"),
        ({"optimizer": {"wd": 0.1}}, "'weight_decay: 0.1'"),
        ({"warmup": 10}, "'schedule: {warmup_steps: 10}'"),
        ({"warmup_ratio": 0.1}, "'schedule.warmup_steps' (in steps)"),
        ({"amp": True}, "'precision: auto'"),
        ({"fp16": True}, "'precision: amp_fp16'"),
        ({"bf16": False}, "'precision: fp32'"),
        ({"bf16": "yes"}, "'precision'"),
        ({"gpus": 8}, "'runtime: {processes: 8}'"),
        ({"runtime": {"num_workers": 4}}, "'workers: 4'"),
        ({"batch_size": [64]}, "'global_batch_size' (over all processes)"),
        ({"img_size": 64, "lr": 1e-4}, None),  # this training has no such field
    ],
)
def test_a_word_of_another_tool_is_answered_by_its_meaning(settings: dict[str, object], answer: str | None) -> None:
    (line,) = answers(settings)
    assert line == f"unknown key; did you mean {answer}?" if answer else "image_size" not in line


@pytest.mark.parametrize(("meaning", "word"), PAIRS, ids=lambda item: item if isinstance(item, str) else "")
def test_a_training_has_every_key_that_it_suggests(meaning: object, word: str) -> None:
    for value in (1, True):
        suggested = re.search("did you mean '(.*: .*)'", "".join(answers({word: value})))
        if suggested:
            assert not [line for line in answers(yaml.safe_load(suggested[1])) if "unknown" in line]


def test_a_recipe_a_change_of_it_and_its_runtime_have_the_same_answers() -> None:
    stage = "{kind: eval.zero_shot, name: a, models: [m], data: d"
    for text, overrides, line in [
        (f"stages:\n  - {stage}, batch_size: 64}}", (), "r.yaml:2: a.batch_size: %s 'micro_batch_size: 64'?"),
        (f"stages:\n  - {stage}}}", ("a.bs=64",), "set a.bs=64: a.bs: %s 'micro_batch_size: 64'?"),
        (f"runtime: {{num_workers: 2}}\nstages:\n  - {stage}}}", (), "r.yaml:1: runtime.num_workers: %s 'workers: 2'?"),
    ]:
        with pytest.raises(vfm.UserError) as caught:
            parse_recipe(text, {"eval.zero_shot": ZeroShot}, overrides, name="r", where="r.yaml")
        assert line % "unknown key; did you mean" in str(caught.value).splitlines()
