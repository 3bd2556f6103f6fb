"""`runtime.pad_widths`: the tower and its old self are stored alike, and the same model comes out to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diva_toy import context, make_clip, make_prior, tune_plan, weights
from test_tune import Fixed, batch_for, make_task
from vfm.artifacts import Pool
from vfm.models.clip import load_clip
from vfm.stage import Runtime
from vfm.train import fit


@pytest.mark.parametrize(
    ("anchor", "update"), [("l2_sp", {"type": "tower"}), ("cosine", {"type": "lora", "rank": 2})], ids=["tower", "lora"]
)
def test_the_tuned_model_is_that_of_the_tower_as_it_was(
    anchor: str, update: dict[str, Any], pool: Pool, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip", image_size=18, patch_size=6)
    prior = make_prior(tmp_path / "prior", clip)
    tuned, told = [], []
    for pad_widths in (False, True):
        task, folder = make_task(clip, prior, anchor, update=update), tmp_path / f"{pad_widths}"
        plan = tune_plan(steps=3)
        ctx = context(plan, folder)
        ctx.send = told.append
        fit(task, Fixed(batch_for(task, pool)), plan, ctx, Runtime(device="cpu", pad_widths=pad_widths))
        tuned.append(weights(load_clip(task.export(folder / "made")).module))
    running = [event.data["running"] for event in told if event.type == "kernels"]
    assert running[1] == "the libraries' own forward; stored wider: patch embedding of 108 as 112 in 2 layers"
    assert tuned[0].keys() == tuned[1].keys()
    for name, value in tuned[0].items():
        torch.testing.assert_close(tuned[1][name], value, rtol=0, atol=1e-5)  # LoRA's first gradients are rounding
