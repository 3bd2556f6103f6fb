"""`runtime.pad_widths`: the tower and its initial state are stored alike, and the result is the same up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diva_toy import context, make_clip, make_prior, tune_config, weights
from test_tune import Fixed, batch_for, make_task
from vfm.models import load_clip
from vfm.plugin import Pool
from vfm.train import fit


@pytest.mark.parametrize(
    ("anchor", "update"), [("l2_sp", {"type": "all"}), ("cosine", {"type": "lora", "rank": 2})], ids=["tower", "lora"]
)
def test_the_tuned_model_does_not_depend_on_the_padding(
    anchor: str, update: dict[str, Any], pool: Pool, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip", image_size=18, patch_size=6)
    prior = make_prior(tmp_path / "prior", clip)
    tuned, events = [], []
    for pad_widths in (False, True):
        task, folder = make_task(clip, prior, anchor, trained=update), tmp_path / f"{pad_widths}"
        config = tune_config(steps=3, runtime={"device": "cpu", "pad_widths": pad_widths})
        ctx = context(config, folder)
        ctx.send = events.append
        fit(task, Fixed(batch_for(task, pool)), config, ctx)
        tuned.append(weights(load_clip(task.export(folder / "made")).module))
    running = [event.data["running"] for event in events if event.type == "kernels"]
    assert running[1] == "the libraries' own forward; padded: patch embedding of 108 as 112 in 2 layers"
    assert tuned[0].keys() == tuned[1].keys()
    for name, value in tuned[0].items():
        torch.testing.assert_close(tuned[1][name], value, rtol=0, atol=1e-5)
