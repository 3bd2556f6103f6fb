"""Named settings of `diva.tune`; what a recipe says itself comes first."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["recommended", "diva-paper"]

# diva-paper: Wang et al. 2024 (arXiv:2407.20171) as its released code trains OpenAI's ViT-L-14 at 224 pixels. The
# README tells where code and paper differ, and what is mended here.
PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "diva-paper": {
        "condition": {"type": "patches", "share": 0.297},  # 76 of 256
        "prompt": "a photo of a .",
        "combine": "add",
        "adapter": {"type": "linear"},
        "num_timesteps": 2,
        "timesteps": {"type": "uniform"},
        "update": {"type": "tower"},
        "anchor": {"type": "none"},
        "crop_scale": [0.9, 1.0],
        "crop_ratio": [0.75, 4 / 3],
        "optimizer": "sgd",
        "lr": 1e-4,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup_steps": 23,
        "grad_clip_norm": 1.0,
        "steps": 4600,
        "global_batch_size": 640,
        "precision": "amp_bf16",
    },
}


def with_preset(given: dict[str, Any]) -> dict[str, Any]:
    """What was given, over what its preset says; samples_seen takes the place of the preset's steps."""
    chosen = dict(PRESETS.get(str(given.get("preset", "recommended")), {}))
    if "samples_seen" in given:
        chosen.pop("steps", None)
    return {**chosen, **given}
