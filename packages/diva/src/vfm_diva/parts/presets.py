"""Named settings of `diva.tune`. The settings of a recipe take precedence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vfm.plugin import merge_settings

Preset = Literal[
    "recommended", "toy-prior", "genhancer", "un2clip", "dcr",
    "diva-paper", "diva-paper-metaclip", "diva-paper-dfn-224", "diva-paper-dfn-378", "diva-paper-siglip-224",
    "diva-paper-siglip-384",
]  # fmt: skip

# recommended: for pretrained generators of latents. As in DIVA's followers, a first stage trains the adapter with CLIP
# frozen, and a second one changes CLIP at a low rate. A random adapter trained jointly harms CLIP at first. The whole
# tower with a cosine anchor lost less zero-shot accuracy for a point of pairs than LoRA or the last block did
# (diva_retention).
# toy-prior: for a small diva.prior, which has its own map from CLIP's joint space and needs no adapter. These are the
# stage's own defaults.
# genhancer: Ma et al. 2025 (arXiv:2503.19480), un2clip: Li et al. 2025 (arXiv:2505.24517), dcr: Han et al. 2026
# (arXiv:2603.04803), as far as their settings are known. docs/feedback.md lists the unknown ones.
# Wang et al. 2024 (arXiv:2407.20171), as the released code trains OpenAI's ViT-L-14 at 224 pixels. docs/feedback.md
# lists the differences between code and paper, and the corrections here.
_DIVA: dict[str, Any] = {
    "prompt": {"text": "a photo of a .", "combine": "add"},
    "adapter": {"type": "linear"},
    "num_timesteps": 2,
    "timesteps": {"type": "uniform"},
    "trained": {"type": "all"},
    "anchor": {"type": "none"},
    "augmentation": {"crop_scale": [0.9, 1.0], "crop_ratio": [0.75, 4 / 3]},
    "optimizer": {"type": "sgd", "momentum": 0.9, "weight_decay": 0.0, "grad_clip_norm": 1.0},
    "schedule": {"type": "cosine", "warmup_steps": 23},
    "lr": 1e-4,
    "steps": 4600,
    "global_batch_size": 640,
    "precision": "amp_bf16",
}
# GenHancer's and DCR's codes: every linear layer and its bias (in peft's words `all-linear` and `lora_only`), and AdamW
# with torch's own settings.
_ALL_LINEAR: dict[str, Any] = {
    "type": "lora", "rank": 16, "alpha": 16, "dropout": 0.1,
    "separate_qkv": True, "biases": True, "after_blocks": True,
}  # fmt: skip
_ADAMW: dict[str, Any] = {
    "type": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "grad_clip_norm": 1.0
}  # fmt: skip
# Condition tokens of each backbone in the released code.
_TOKENS: dict[str, dict[str, Any]] = {
    "diva-paper": {"type": "patches", "count": 76},  # OpenAI at 224 and 336: as many tokens as text states, 77
    "diva-paper-metaclip": {"type": "patches", "share": 1.0},
    "diva-paper-dfn-224": {"type": "patches", "share": 1.0},
    "diva-paper-dfn-378": {"type": "patches", "count": 364},
    "diva-paper-siglip-224": {"type": "raster_pooled", "window": 6},
    "diva-paper-siglip-384": {"type": "raster_pooled", "window": 10},
}
PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {
        "condition": {"type": "embedding"},
        "adapter": {"type": "mlp", "first_steps": 2000, "first_lr": 1e-4, "joint": False},
        "num_timesteps": 1,
        "timesteps": {"type": "logit_normal", "mean": 0.0, "std": 1.0},
        "trained": {"type": "all"},
        "anchor": {"type": "cosine", "weight": 1.0},  # the best of seven arms in `diva_frontier`
        "optimizer": {"type": "adamw", "weight_decay": 0.01, "grad_clip_norm": 1.0},
        "lr": 1e-6,
        "steps": 5000,
        "global_batch_size": 256,
    },
    "toy-prior": {"steps": 200},
    "genhancer": {
        "condition": {"type": "cls", "projected": True},
        "adapter": {"type": "mlp", "first_steps": 100_000, "first_lr": 1e-4, "joint": False, "unit_scale": False},
        "num_timesteps": 1,
        "timesteps": {"type": "logit_normal", "mean": 0.0, "std": 1.0},
        "sample_latents": True,
        "trained": _ALL_LINEAR,
        "anchor": {"type": "none"},
        "augmentation": {"crop_scale": [0.9, 1.0], "crop_ratio": [0.75, 4 / 3]},
        "optimizer": _ADAMW,
        "schedule": {"type": "constant", "warmup_steps": 0},
        "lr": 1e-5,
        "steps": 10_000,
        "global_batch_size": 256,
        "precision": "amp_bf16",
    },
    "dcr": {
        "condition": {"type": "cls", "projected": True},
        "prompt": {"text": "", "combine": "broadcast"},
        "adapter": {"type": "mlp", "first_steps": 100_000, "first_lr": 1e-4, "joint": False, "unit_scale": False},
        "loss": {"type": "contrastive", "temperature": 0.1},
        "num_timesteps": 1,
        "timesteps": {"type": "uniform"},
        "sample_latents": True,
        "trained": _ALL_LINEAR,
        "anchor": {"type": "none"},
        "augmentation": {"crop_scale": [0.9, 1.0], "crop_ratio": [0.75, 4 / 3]},
        "optimizer": _ADAMW,
        "schedule": {"type": "constant", "warmup_steps": 0},
        "lr": 1e-5,
        "steps": 4600,
        "global_batch_size": 256,
        "micro_batch_size": 16,  # images that are compared
        "precision": "amp_bf16",
    },
    "un2clip": {
        "condition": {"type": "embedding"},
        "adapter": {"type": "none"},  # the generator's own class embedding
        "prompt": {"text": "", "combine": "replace"},
        "num_timesteps": 1,
        "timesteps": {"type": "uniform"},
        "trained": {"type": "all"},
        "anchor": {"type": "none"},
        "optimizer": {"type": "adamw"},
        "lr": 3e-7,
        "steps": 90_000,
        "global_batch_size": 32,
    },
}


PRESETS |= {name: {**_DIVA, "condition": condition} for name, condition in _TOKENS.items()}


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the settings of a recipe over the settings of its preset.

    `samples_seen` and `epochs` replace the preset's `steps`. `latents` replaces its `augmentation` and
    `sample_latents`, as crops and means are cached.
    """
    chosen = dict(PRESETS.get(str(settings.get("preset", "recommended")), {}))
    condition = settings.get("condition")
    if isinstance(condition, Mapping) and "share" in condition:  # instead of the preset's number of patches
        chosen["condition"] = {key: value for key, value in chosen.get("condition", {}).items() if key != "count"}
    if "samples_seen" in settings or "epochs" in settings:
        chosen.pop("steps", None)
    if settings.get("latents"):
        chosen.pop("augmentation", None)
        chosen.pop("sample_latents", None)
    return merge_settings(chosen, settings)
