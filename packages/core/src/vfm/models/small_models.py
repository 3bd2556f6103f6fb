"""Architectures small enough for a laptop. Importing this module registers them with timm and open_clip.

Vision encoders (timm): `eva02_*` have EVA-02's blocks (SwiGLU, rotary and learned positions), `vit_*` are plain ViTs.
Pico and nano follow EVA-02 Ti/S (fused qkv, no norm inside the MLP). Mini follows B/L (separate q, k, v, and sub-LN).
The `clip` variant has EVA-CLIP's second norm, inside the attention.

    pico  width  64, depth 2, 2 heads      nano  width 128, depth 4, 4 heads      mini  width 192, depth 6, 3 heads

CLIP models (open_clip, `configs/*.json`): `ViT-*` with open_clip's own vision tower, `EVA02-*` with the timm encoder of
the same name, as in EVA-CLIP (class token, the encoder's head as projection, separate text tower).

Source: Fang et al. 2023, EVA-02 (arXiv:2303.11331) for the blocks. The sizes are vfm's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva, checkpoint_filter_fn as eva_filter
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn as vit_filter
from torch import nn

_PICO = {"embed_dim": 64, "depth": 2, "num_heads": 2}
_NANO = {"embed_dim": 128, "depth": 4, "num_heads": 4}
_MINI = {"embed_dim": 192, "depth": 6, "num_heads": 3}
_EVA02 = {"mlp_ratio": 4 * 2 / 3, "swiglu_mlp": True, "use_rot_pos_emb": True}
_SUB_LN = {"qkv_fused": False, "scale_mlp": True}

_SIZES: dict[str, dict[str, int]] = {"pico": _PICO, "nano": _NANO, "mini": _MINI}
# (size, patch size, image size) of the plain and the EVA-02 encoders. Cost is proportional to the number of patches.
_GRIDS = [
    ("pico", 8, 32),  # 16 patches
    ("pico", 8, 64),  # 64
    ("nano", 8, 32),  # 16
    ("nano", 4, 32),  # 64
    ("nano", 8, 48),  # 36
    ("nano", 16, 64),  # 16
    ("nano", 8, 64),  # 64
    ("mini", 14, 112),  # 64
]


def _encoders() -> dict[str, dict[str, Any]]:
    """Collect the arguments of every encoder, by timm name."""
    encoders: dict[str, dict[str, Any]] = {}
    for size, patch, image in _GRIDS:
        arguments = {"img_size": image, "patch_size": patch, **_SIZES[size]}
        sub_ln = _SUB_LN if size == "mini" else {}
        encoders[f"eva02_{size}_patch{patch}_{image}"] = {**arguments, **_EVA02, **sub_ln}
        encoders[f"vit_{size}_patch{patch}_{image}"] = arguments
    clip = {"img_size": 128, "patch_size": 16, "scale_attn_inner": True, "global_pool": "token"}
    encoders["eva02_mini_patch16_clip_128"] = {**_MINI, **_EVA02, **_SUB_LN, **clip}
    return encoders


ENCODERS = _encoders()


def _default_cfg(image_size: int) -> dict[str, Any]:
    """Build timm's record of a model without weights.

    Its image statistics are CLIP's, because CLIP is EVA's teacher.
    """
    return {
        "num_classes": 0,
        "input_size": (3, image_size, image_size),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


# timm's `register_model` reads `default_cfgs` of the module that holds the entry point.
default_cfgs = generate_default_cfgs({name: _default_cfg(size["img_size"]) for name, size in ENCODERS.items()})


def _entry_point(name: str, arguments: dict[str, Any]) -> Callable[..., nn.Module]:
    """Build the function that timm calls to build `name`. Its keyword arguments override the defaults."""
    if name.startswith("eva02"):
        model_class = Eva
        keys = eva_filter
        grid = arguments["img_size"] // arguments["patch_size"]
        arguments = {"ref_feat_shape": (grid, grid), **arguments}
    else:
        model_class, keys = VisionTransformer, vit_filter

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            model_class,
            name,
            pretrained,
            pretrained_filter_fn=keys,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
            **{"num_classes": 0, **arguments, **kwargs},
        )
        return model

    build.__name__ = build.__qualname__ = name
    return build


for _name, _arguments in ENCODERS.items():
    register_model(_entry_point(_name, _arguments))

open_clip.add_model_config(Path(__file__).parent / "configs")
