"""Named settings of `diva.tune`; the settings of a recipe take precedence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["recommended", "diva-paper"]

# diva-paper: Wang et al. 2024 (arXiv:2407.20171), as the released code trains OpenAI's ViT-L-14 at 224 pixels. The
# README lists the differences between code and paper, and what is corrected here.
PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "diva-paper": {
        "condition": {"type": "patches", "share": 0.297},  # 76 of 256
        "prompt": {"text": "a photo of a .", "combine": "add"},
        "adapter": {"type": "linear"},
        "num_timesteps": 2,
        "timesteps": {"type": "uniform"},
        "update": {"type": "tower"},
        "anchor": {"type": "none"},
        "augmentation": {"crop_scale": [0.9, 1.0], "crop_ratio": [0.75, 4 / 3]},
        "optimizer": {"type": "sgd", "momentum": 0.9, "weight_decay": 0.0, "grad_clip_norm": 1.0},
        "schedule": {"type": "cosine", "warmup_steps": 23},
        "lr": 1e-4,
        "steps": 4600,
        "global_batch_size": 640,
        "precision": "amp_bf16",
    },
}


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings laid over those of their preset; `samples_seen` replaces the preset's `steps`."""
    chosen = dict(PRESETS.get(str(given.get("preset", "recommended")), {}))
    if "samples_seen" in given:
        chosen.pop("steps", None)
    return _laid_over(chosen, given)


def _laid_over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; a part of another type replaces the preset's part and all its settings."""
    if "type" in given and given["type"] != base.get("type"):
        return dict(given)
    merged = {**base, **given}
    for key, value in base.items():
        if isinstance(value, Mapping) and isinstance(given.get(key), Mapping):
            merged[key] = _laid_over(value, given[key])
    return merged
