"""`runtime.kernels` reaches the task: it is checked early, used during the training and stored in the manifest."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Literal

import pytest
import torch

from train_toy import Plan, Regression, Samples, plan, train
from vfm.flow.execution.run import run_plan
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.manifest import read_manifest
from vfm.plugin import Artifact, Context, UserError
from vfm.train import fit


class Fused(Regression):
    """A task that records whether its kernels are in use."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[bool] = []
        self.choice = ""

    @contextmanager
    def kernels(self, choice):
        self.choice = choice
        yield "linear in 2 layers"
        self.choice = ""

    def forward(self, inputs):
        self.inside.append(self.choice == "auto")
        return super().forward(inputs)


class TrainFused(Plan):
    kind: Literal["toy.fused"] = "toy.fused"  # type: ignore[assignment]

    def run(self, ctx: Context) -> Artifact:
        fit(Fused(), Samples(self.global_batch_size), self, ctx)
        return Artifact.create(ctx.directory)


def test_kernels_are_used_only_during_the_training_and_reported(tmp_path):
    task, _, events = train(tmp_path, plan(steps=3), task=Fused())
    assert task.inside == [True] * 3
    assert task.choice == ""
    assert [event.data["running"] for event in events if event.type == "kernels"] == ["linear in 2 layers"]


def test_kernels_are_stored_in_the_manifest_and_are_not_part_of_the_identity(tmp_path):
    toy = "{kind: toy.fused, name: toy, steps: 2, global_batch_size: 8, runtime: {device: cpu, kernels: %s}}"
    text = f"stages:\n  - {toy}\n"

    def planned(choice):
        recipe = parse_recipe(text % choice, {"toy.fused": TrainFused}, (), name="r", where="r.yaml")
        return recipe, make_plan(recipe, Store(tmp_path))

    outcome = run_plan(*planned("auto"), Store(tmp_path), lambda event: None)
    manifest = read_manifest(outcome.steps[0].slot.artifact)
    assert (manifest["kernels"], manifest["runtime"]["kernels"]) == ("linear in 2 layers", "auto")
    assert planned("reference")[1][0].status == "cached"
    outcome.steps[0].slot.discard()
    with pytest.raises(UserError, match=r"toy: runtime\.kernels: triton needs a CUDA device, got cpu"):
        run_plan(*planned("triton"), Store(tmp_path), lambda event: None)
    assert not outcome.steps[0].slot.folders


def test_task_without_padding_reports_that_nothing_is_padded(tmp_path):
    events = []
    ctx = Context("toy", tmp_path / "part", tmp_path / "work", {}, events.append)
    ctx.directory.mkdir()
    fit(Regression(), Samples(), plan(steps=1, runtime={"device": "cpu", "pad_widths": True}), ctx)
    expected = "none; padded: nothing (Regression does not support it)"
    assert [event.data["running"] for event in events if event.type == "kernels"] == [expected]
    assert f"kernels: {expected}" in [event.data["message"] for event in events if event.type == "log"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_forcing_kernels_on_a_task_without_them_is_an_error(tmp_path):
    ctx = Context("toy", tmp_path / "part", tmp_path / "work", {})
    with pytest.raises(UserError, match=r"toy: runtime\.kernels: Regression has no kernels; use auto"):
        fit(Regression(), Samples(), plan(runtime={"device": "cpu", "kernels": "triton"}), ctx)
