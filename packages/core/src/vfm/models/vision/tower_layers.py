"""The layers of a CLIP model's towers, from the stem to the projection, and their blocks.

For a timm encoder the layers are timm's groups. Otherwise they follow open_clip's own locks: the layers before the
blocks, each block (the last one with the final norm), and the projection. EVA-CLIP's code (arXiv:2303.15389) counts the
final norm with the projection instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from timm.models import group_parameters
from torch import nn

from vfm.models.vision.vision_towers import vision_tower

TowerName = Literal["image", "text"]

_STEM = re.compile(r"(transformer\.)?(class_emb|cls_emb|token_emb|positional_emb|conv\d|bn\d|ln_pre|embed|shared)")
_BLOCK = re.compile(r"(?:blocks?|layers?)\.?(\d+)\.")  # also matches blocks of ResNets and of Hugging Face's encoders
_FINAL_NORM = ("ln_post.", "ln_final.")


def is_of_block(name: str) -> bool:
    """Check by its name whether a weight belongs to a block."""
    return bool(_BLOCK.search(name))


def tower_of(name: str) -> TowerName | None:
    """Find the tower of a weight in `ClipModel.module`. The temperature and SigLIP's bias have none."""
    if name in ("logit_scale", "logit_bias"):
        return None
    if name.startswith("visual."):
        return "image"
    return "text"


def tower_layers(module: nn.Module, tower: TowerName) -> list[list[str]]:
    """Group the names of a tower's weights in `ClipModel.module` by layer."""
    names = [name for name, _ in module.named_parameters() if tower_of(name) == tower]
    if tower == "image" and isinstance(module.visual, TimmModel):
        return _timm_layers(module.visual, names)
    if tower == "image":
        prefix, text = "visual.", None
    else:
        prefix = "text."
        text = getattr(module, "text", None)
    # open_clip has no group for the projection after Hugging Face's encoders: it belongs to the last block's.
    return named_layers(names, prefix, has_end=not isinstance(text, HFTextEncoder))


def named_layers(names: Sequence[str], prefix: str, *, has_end: bool = True) -> list[list[str]]:
    """Group the names of weights by layer.

    Args:
        names: Names of the weights.
        prefix: Optional beginning of a name. It is ignored.
        has_end: Whether weights after the last block are a separate layer. False counts them to the last block.
    """
    last = 0
    for name in names:
        block = _BLOCK.search(name.removeprefix(prefix))
        if block:
            last = max(last, int(block[1]) + 1)
    layers: dict[int, list[str]] = {}
    for name in names:
        layers.setdefault(_layer(name.removeprefix(prefix), last, last + has_end), []).append(name)
    return [layers[number] for number in sorted(layers)]


def tower_blocks(module: nn.Module, tower: TowerName) -> Sequence[nn.Module]:
    """List the blocks of a tower of `ClipModel.module`.

    Raises:
        UserError: If the vision tower is not a transformer.
    """
    if tower == "image":
        return vision_tower(module).blocks
    text: Any = getattr(module, "text", module)  # open_clip's own tower, or a Hugging Face encoder
    return first_blocks(text.transformer)


def first_blocks(module: nn.Module) -> list[nn.Module]:
    """List the parts of a model's first list of modules: the blocks of a transformer."""
    return list(next(part for part in module.modules() if isinstance(part, nn.ModuleList)))


def _timm_layers(visual: TimmModel, names: list[str]) -> list[list[str]]:
    """Group names as timm does. Layers that open_clip adds after the encoder belong to the last group."""
    trunk: Any = visual.trunk
    # timm knows the layers of all its encoders, also of ones without a list of blocks.
    by_number: dict[int, list[str]] = group_parameters(trunk, trunk.group_matcher())
    layers = []
    for number in sorted(by_number):
        layers.append([f"visual.trunk.{name}" for name in by_number[number]])
    layers[-1] += [name for name in names if not name.startswith("visual.trunk.")]
    return layers


def _layer(name: str, last: int, end: int) -> int:
    block = _BLOCK.search(name)
    if block:
        return int(block[1]) + 1
    if _STEM.match(name):
        return 0
    if name.startswith(_FINAL_NORM):
        return last
    return end
