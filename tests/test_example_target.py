"""Test the example of a plugin's target: its values, its errors, and a run with the plugin installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from eva_toy import STUDENT, random_inputs, stage
from outside import ROOT, Installed, checked, install
from vfm.models import build_vision
from vfm.plugin import UserError
from vfm_eva import Features
from vfm_eva.targets.images import EvaInputs

EXAMPLE = ROOT / "examples/target_plugin"
TEACHER = {"projected": False, "layer": -2}


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("target")
    copy = shutil.copytree(EXAMPLE, folder / "plugin")  # building leaves nothing in the source tree
    return install(folder, wheels, "vfm-eva", "vfm-clip", "vfm-core[report]", copy)


def test_example_is_short() -> None:
    assert sum(len(file.read_text().splitlines()) for file in EXAMPLE.glob("*.py")) < 50


@pytest.mark.usefixtures("target_plugin")
@pytest.mark.parametrize("grid", [(4, 4), (6, 6)])
def test_targets_are_the_features_of_the_next_image(grid: tuple[int, int]) -> None:
    student = build_vision(STUDENT, num_classes=0, seed=0)
    permuted, plain = (
        target.build(student, build_vision("eva02_nano_patch8_32", num_classes=0, seed=1))
        for target in (stage(target={"type": "permuted", **TEACHER}).target, Features(**TEACHER))
    )
    inputs = random_inputs()
    features = plain.targets(inputs, grid)
    assert (features[:, None] - features).abs().amax(dim=(2, 3)).fill_diagonal_(1).min() > 0.1  # images differ
    assert torch.equal(permuted.targets(inputs, grid), features[[1, 2, 3, 0]])
    assert permuted.width == plain.width
    assert permuted.preprocess_for(plain.preprocess) == plain.preprocess


@pytest.mark.usefixtures("target_plugin")
def test_one_image_has_no_other_and_losses_of_the_image_itself_are_refused() -> None:
    target = stage(target={"type": "permuted", **TEACHER}).target
    built = target.build(None, build_vision("eva02_nano_patch8_32", num_classes=0, seed=1))
    inputs = random_inputs()
    with pytest.raises(UserError, match="expected two or more images in a micro-batch, got 1"):
        built.targets(EvaInputs(inputs.images[:1], inputs.bool_mask[:1]), (4, 4))
    entry = {"teacher": "teacher", "target": {"type": "permuted"}}
    for changes, line in (
        (
            {"teacher": None, "teachers": [{**entry, "class_weight": 1.0}]},
            "class_weight has no effect with target: perm",
        ),
        ({"teacher": None, "teachers": [{**entry, "loss": "phi_s"}]}, "loss has no effect with target: permuted"),
        ({"teacher": None, "targets": "cache", "target": {"type": "permuted"}}, "target is fixed by 'cache'"),
        ({"target": {"type": "permuted"}, "mask": {"ratio": 0}, "naflex": {}}, "naflex needs the features of a teach"),
    ):
        with pytest.raises(ValidationError, match=line):
            stage(**changes)


@pytest.mark.slow
def test_recipe_predicts_the_plugins_target(installed: Installed) -> None:
    checked(installed.vfm("run", "plugin/recipe.yaml"))
    run = installed.folder / "store/runs/recipe"
    rows = [json.loads(line) for line in (run / "artifacts/encoder/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    checked(installed.vfm("plan", "plugin/recipe.yaml", "--estimate", "--set", "encoder.steps=7"))


@pytest.mark.slow
def test_micro_batches_of_one_image_are_one_line(installed: Installed) -> None:
    alone = ("--set", "encoder.micro_batch_size=1", "--set", "encoder.steps=5")  # an encoder that no other test trains
    done = installed.vfm("run", "plugin/recipe.yaml", *alone)
    assert done.returncode != 0
    assert "expected two or more images in a micro-batch, got 1" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
