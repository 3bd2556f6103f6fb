"""Filters that score with a model refuse scores that are not finite, and name the model and the first sample."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from vfm.models import build_clip, save_clip
from vfm.plugin import UserError
from vfm_curation.filters.stages import FilterPool


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def pool(make_pool: Any) -> Any:
    samples = [(f"{i:03d}", {"en": ["a red dog"]}) for i in range(4)]
    return make_pool("pool", samples, images={uid: png(50 * i) for i, (uid, _) in enumerate(samples)})


def refusal(run_stage: Any, pool: Any, clip: Any, one: dict[str, Any]) -> str:
    with pytest.raises(UserError) as raised:
        run_stage(FilterPool(name="f", pool="p", filters=[{"clip": "c", **one}]), p=pool, c=clip)
    return str(raised.value)


@pytest.mark.parametrize("tower", ["visual.", "transformer."])
def test_damaged_weights_of_either_tower_are_refused(run_stage: Any, pool: Any, tmp_path: Path, tower: str) -> None:
    model = build_clip("ViT-Pico-8-32", seed=0)
    with torch.no_grad():
        next(p for name, p in model.module.named_parameters() if name.startswith(tower) and p.ndim == 2)[0, 0] = (
            math.inf
        )
    line = refusal(run_stage, pool, save_clip(model, tmp_path / "clip"), {"type": "clip_score", "min_score": 0.1})
    assert "clip: expected finite outputs, got NaN or infinity for '" in line
    assert ("pool-000000.tar:00" if tower == "visual." else "'a red dog'") in line


def test_head_whose_scores_are_not_finite_is_refused(run_stage: Any, pool: Any, tmp_path: Path) -> None:
    model = build_clip("ViT-Pico-8-32", seed=0)
    weight = np.full(model.embed_dim, np.inf, np.float32)
    save_file({"weight": weight}, tmp_path / "head.safetensors")
    one = {"type": "linear_score", "head": str(tmp_path / "head.safetensors"), "min_score": 0.0}
    line = refusal(run_stage, pool, save_clip(model, tmp_path / "clip"), one)
    assert line.startswith(f"{tmp_path / 'head.safetensors'}: expected finite scores, got ")
