"""Evaluations during training: their configuration, and that they do not change the training, interrupted or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from train_toy import Plan, Probe, Regression, Samples, plan, train
from vfm.eval.classify.stages import ZeroShot
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.interfaces import load_plugins, refs, stage_types
from vfm.plugin import (
    ClipCheckpoint,
    Context,
    Evaluation,
    Report,
    Training,
    UserError,
)
from vfm.train.optim.state import model_tensors


class ClipPlan(Training):
    """A training of a CLIP model, for the recipes here."""

    kind: Literal["toy.clip"] = "toy.clip"

    def run(self, ctx: Context) -> ClipCheckpoint:
        raise AssertionError("only planned here")


def evaluated_plan(**changes: Any) -> Plan:
    tasks = [Probe(name="probe"), Probe(name="far", at=3.0)]
    settings = {"steps": 12, "ema_decay": 0.5, "every_steps": 5, "tasks": tasks, "checkpoint": {"every_steps": 3}}
    return plan(**{**settings, **changes})


def lines(folder: Path, split: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def test_evaluations_do_not_change_a_bit_of_the_training(tmp_path):
    with_evals, ctx, events = train(tmp_path / "with", evaluated_plan(), task=Regression(dropout=0.2, norm=True))
    without, _, _ = train(
        tmp_path / "without", evaluated_plan(tasks=[], every_steps=None), task=Regression(dropout=0.2, norm=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(with_evals.parameters(), without.parameters(), strict=True))
    assert lines(tmp_path / "with", "train") == lines(tmp_path / "without", "train")
    evaluated = lines(tmp_path / "with", "val")
    assert [(line["step"], line["eval"]) for line in evaluated] == [
        (s, e) for s in (5, 10, 12) for e in ("probe", "far")
    ]
    with_evals.eval()
    with torch.no_grad():
        exported = float(with_evals.net(torch.ones(1, 4)))  # the averaged weights, as fit leaves them
    assert evaluated[-2]["val/answer"] == exported
    assert set(evaluated[-1]) >= {"val/far/answer", "val/far/answer/half"}
    assert not ctx.bad, "an evaluation's bad samples are not the training's"
    assert {event.data["message"] for event in events if event.type == "warning"} == {"at 1.0", "at 3.0"}
    assert not list((tmp_path / "with" / "work").glob("evals*"))


@pytest.mark.parametrize("step", [4, 5, 6, 10, 11])
def test_interruption_near_an_evaluation_changes_nothing(tmp_path, step):
    train(tmp_path / "whole", evaluated_plan(), task=Regression(dropout=0.2))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", evaluated_plan(), task=Regression(dropout=0.2), data=Samples(stop=step))
    resumed, _, _ = train(tmp_path / "cut", evaluated_plan(), task=Regression(dropout=0.2))
    files = [(tmp_path / name / "part" / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert model_tensors(resumed).keys() == model_tensors(Regression()).keys()


def test_curves_have_a_chart_for_each_evaluation(tmp_path):
    train(tmp_path, evaluated_plan(), task=Regression())
    charts = [json.loads(file.read_text()) for file in (tmp_path / "part" / "panels").glob("*.json")]
    (far,) = [chart for chart in charts if chart["title"] == "During training: far"]
    assert [series["name"] for series in far["series"]] == ["answer"], "scores with a slash are only in the file"
    assert far["series"][0]["x"] == [5, 10, 12]


RECIPE = """
stages:
  - {kind: shapes.pool, name: pool, num_samples: 20}
  - {kind: shapes.classes, name: val, num_samples: 20}
  - kind: toy.clip
    name: clip
    steps: 10
    EVALS
"""


def parsed(evals: str, kind: str = "toy.clip") -> Any:
    known = {**stage_types(load_plugins()), "toy.clip": ClipPlan, "toy.train": Plan}
    return parse_recipe(RECIPE.replace("EVALS", evals).replace("toy.clip", kind), known, name="r", where="r.yaml")


def test_evaluations_are_resolved_and_their_settings_are_part_of_the_identity(tmp_path):
    def identity(evals: str) -> str:
        return make_plan(parsed(evals), Store(tmp_path))[-1].identity

    recipe = parsed(
        "evaluation: {tasks: [{kind: eval.retrieval, data: pool, recall_k: [1]}, {kind: eval.zero_shot, data: val}]}"
    )
    stage = recipe.stages[-1]
    assert [(key, str(ref)) for key, ref in refs(stage)] == [
        ("evaluation.tasks[0].data", "pool"),
        ("evaluation.tasks[1].data", "val"),
    ]
    assert [evaluation.log_prefix for evaluation in stage.evaluation.tasks] == ["", ""]
    again = ClipPlan.model_validate(json.loads(stage.model_dump_json()), context=stage_types(load_plugins()))
    assert again == stage
    one = identity("evaluation: {tasks: [{kind: eval.retrieval, data: pool, recall_k: [1]}]}")
    assert one == identity("evaluation: {tasks: [{kind: eval.retrieval, name: retrieval, data: pool, recall_k: [1]}]}")
    assert one != identity("evaluation: {tasks: [{kind: eval.retrieval, data: pool, recall_k: [5]}]}")


@pytest.mark.parametrize(
    ("evals", "message"),
    [
        (
            "evaluation: {tasks: [{kind: eval.retrieval, data: pool, recal_k: [1]}]}",
            "r.yaml:8: clip.evaluation.tasks[0].recal_k: unknown key; did you mean 'recall_k'?",
        ),
        ("evaluation: {tasks: [{kind: eval.retrieval}]}", "r.yaml:8: clip.evaluation.tasks[0].data: is required"),
        (
            "evaluation: {tasks: [{kind: eval.retrievel, data: pool}]}",
            "r.yaml:8: clip.evaluation.tasks[0]: expected a kind of evaluation, got 'eval.retrievel';"
            " did you mean 'eval.retrieval'?",
        ),
        (
            "evaluation: {tasks: [{kind: eval.retrieval, data: val}]}",
            "r.yaml:8: clip.evaluation.tasks[0].data: expected a PairDataset",
        ),
        (
            "evaluation: {tasks: [{kind: eval.retrieval, data: pool, models: [clip]}]}",
            "evaluation.tasks[0]: leave models, predictions and runtime out",
        ),
        ("evaluation: {every_steps: 5}", "every_steps needs tasks: list the evaluations to run"),
        (
            "evaluation: {tasks: [{kind: eval.zero_shot, data: val},"
            " {kind: eval.zero_shot, data: val, templates: ['{}']}]}",
            "evaluation.tasks[1]: the name 'zero_shot' is already used",
        ),
    ],
)
def test_invalid_evaluation_is_reported_with_its_line(evals, message):
    with pytest.raises(UserError) as error:
        parsed(evals)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_evaluation_of_texts_is_refused_in_a_stage_that_makes_no_clip_model():
    with pytest.raises(UserError, match=r"eval\.zero_shot expects a ClipCheckpoint, toy\.train makes a Artifact"):
        parsed("evaluation: {tasks: [{kind: eval.zero_shot, data: val}]}", kind="toy.train")


def test_separate_evaluation_still_needs_models():
    with pytest.raises(UserError, match=r"score\.models: is required"):
        parsed("evaluation: {}\n  - {kind: eval.zero_shot, name: score, data: val}")


def test_evaluation_without_scores_in_training_is_refused():
    class Mute(Evaluation):
        kind: Literal["eval.mute"] = "eval.mute"

        def run(self, ctx: Context) -> Report:
            raise AssertionError

    with pytest.raises(ValueError, match=r"eval\.mute does not evaluate models in training"):
        ClipPlan(name="clip", steps=1, evaluation={"tasks": [Mute(name="mute")]})


def test_identity_depends_on_the_version_of_an_evaluation_but_not_on_when_checkpoints_are_saved(tmp_path, monkeypatch):
    def identity(settings: str) -> str:
        return make_plan(parsed(settings), Store(tmp_path))[-1].identity

    evals = "evaluation: {tasks: [{kind: eval.zero_shot, data: val}]}"
    before = identity(evals)
    line = f"\n  - {{kind: models.interpolate, name: line, start: clip, end: clip, {evals}}}"
    on_line = identity(line)
    assert identity(f"{evals}\n    checkpoint: {{every_steps: 3}}") == before
    monkeypatch.setattr(ZeroShot, "version", 99)
    assert identity(evals) != before
    assert identity(line) != on_line


def test_identity_depends_on_what_the_file_of_an_evaluation_says_and_not_on_its_folder(tmp_path):
    def identity(folder: str, text: str | None) -> str:
        file = tmp_path / folder / "cupl.json"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        task = f"{{kind: eval.zero_shot, data: val, prompts: {file}}}"
        return make_plan(parsed(f"evaluation: {{tasks: [{task}]}}"), Store(tmp_path / "store"))[-1].identity

    before = identity("a", '{"red": ["one"]}')
    assert identity("b", '{"red": ["one"]}') == before
    assert identity("a", '{"red": ["two"]}') != before
    with pytest.raises(UserError, match=r"cupl\.json: no such file"):
        identity("a", None)
