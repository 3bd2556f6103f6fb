"""`runtime.pad_widths`: the same training to rounding, for open_clip's own tower and for a timm one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_world import EVA, VIT, make_pool, plan
from vfm.plugin import Context

TIMM = {"image_size": 112, "timm_model_name": "eva02_mini_patch14_112"}
MODELS = {
    "open_clip": VIT | {"vision_cfg": VIT["vision_cfg"] | {"image_size": 18, "patch_size": 6}},
    "timm": EVA | {"vision_cfg": EVA["vision_cfg"] | TIMM},
}


@pytest.mark.parametrize(("name", "padded"), [("open_clip", "108 as 112"), ("timm", "588 as 592")])
def test_padding_does_not_change_the_trained_weights(tmp_path, name, padded):
    pool = make_pool(tmp_path / "pool")

    def train(folder: Path, pad_widths: bool) -> tuple[dict[str, Tensor], list[Any]]:
        events: list[Any] = []
        ctx = Context("clip", folder / "artifact", folder / "work", {"pool": pool.path}, events.append)
        ctx.directory.mkdir(parents=True)
        runtime = {"device": "cpu", "pad_widths": pad_widths}
        made = plan(model=MODELS[name], steps=3, micro_batch_size=6, runtime=runtime).run(ctx)
        running = [event.data["running"] for event in events if event.type == "kernels"]
        return load_file(made.path / "open_clip_model.safetensors"), running

    (theirs, _), (ours, running) = train(tmp_path / "plain", False), train(tmp_path / "padded", True)
    assert running == [f"the libraries' own forward; padded: patch embedding of {padded} in 1 layer"]
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        # AdamW enlarges rounding of a gradient near zero: 1.3e-6 with torch 2.15, of steps of 1e-3.
        torch.testing.assert_close(ours[key], value, rtol=0, atol=5e-6)
