"""The groups of a tower's weights, from the stem to the projection, and locks on the first of them.

A lock leaves the last groups free, layer decay slows the first. The groups are timm's for a timm encoder, and otherwise
those of open_clip's own locks: what precedes the blocks, each block (the last one with the final norm), the projection.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Literal

from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from timm.layers import PatchDropout, PatchDropoutWithIndices
from timm.models import group_parameters
from torch import nn

from vfm.models import ClipModel, KeyReport
from vfm.plugin import UserError
from vfm_clip.stages import Tower

__all__ = ["TowerName", "lock_towers", "new_weights", "patch_dropouts", "text_blocks", "tower_groups", "tower_of"]

TowerName = Literal["image", "text"]

_STEM = re.compile(r"(transformer\.)?(class_emb|cls_emb|token_emb|positional_emb|conv\d|bn\d|ln_pre|embed|shared)")
_BLOCK = re.compile(r"(?:blocks?|layers?)\.?(\d+)\.")  # also matches blocks of ResNets and of Hugging Face's encoders
_FINAL_NORM = ("ln_post.", "ln_final.")


def lock_towers(
    clip: ClipModel,
    *,
    vision: Tower = Tower(),  # noqa: B008 (frozen)
    text: Tower = Tower(),  # noqa: B008 (frozen)
    new: Collection[str] = (),
) -> None:
    """Set `requires_grad` of a model's weights by the locks on its towers, in place.

    Args:
        clip: the model. Its temperature and bias belong to neither tower and are unchanged.
        vision: the vision tower's `lock`, and `unlocked`, the number of last groups that are trained all the same.
        text: the same for the text tower.
        new: names of weights with random values, which are trained even in a locked tower.

    Raises:
        UserError: a tower has no more groups than are unlocked.

    Source: Zhai et al. 2021, LiT (arXiv:2111.07991); the groups are those of open_clip's locks.
    """
    towers: dict[TowerName, Tower] = {"image": vision, "text": text}
    weights = dict(clip.module.named_parameters())
    for name, tower in towers.items():
        groups = tower_groups(clip, name)
        if tower.unlocked >= len(groups):
            raise UserError(
                f"{clip.name}: unlocked must be less than the {len(groups)} groups of the {name} tower,"
                f" got {tower.unlocked}"
            )
        first_free = len(groups) - tower.unlocked if tower.lock else 0
        for number, group in enumerate(groups):
            for weight in group:
                weights[weight].requires_grad_(number >= first_free or weight in new)


def tower_of(name: str) -> TowerName | None:
    """Return the tower of a weight of `ClipModel.module`; None for the temperature and SigLIP's bias."""
    if name in ("logit_scale", "logit_bias"):
        return None
    return "image" if name.startswith("visual.") else "text"


def tower_groups(clip: ClipModel, tower: TowerName) -> list[list[str]]:
    """Return the names of a tower's weights in `clip.module`, by group; the last group is the projection."""
    names = [name for name, _ in clip.module.named_parameters() if tower_of(name) == tower]
    if tower == "image" and isinstance(clip.module.visual, TimmModel):
        return _timm_groups(clip.module.visual, names)
    prefix, text = ("visual.", None) if tower == "image" else ("text.", getattr(clip.module, "text", None))
    inner = {name: name.removeprefix(prefix) for name in names}
    last = max((int(found[1]) + 1 for name in inner.values() if (found := _BLOCK.search(name))), default=0)
    # open_clip has no group for the projection after Hugging Face's encoders: it belongs to the last block's.
    end = last if isinstance(text, HFTextEncoder) else last + 1
    groups: dict[int, list[str]] = {}
    for name, own in inner.items():
        groups.setdefault(_group(own, last, end), []).append(name)
    return [groups[number] for number in sorted(groups)]


def _timm_groups(visual: TimmModel, names: list[str]) -> list[list[str]]:
    """Return timm's own groups; what open_clip adds after the encoder belongs to the last one."""
    trunk: Any = visual.trunk
    by_number: dict[int, list[str]] = group_parameters(trunk, trunk.group_matcher())
    groups = [[f"visual.trunk.{name}" for name in by_number[number]] for number in sorted(by_number)]
    groups[-1] += [name for name in names if not name.startswith("visual.trunk.")]
    return groups


def _group(name: str, last: int, end: int) -> int:
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    if _STEM.match(name):
        return 0
    return last if name.startswith(_FINAL_NORM) else end


def new_weights(report: KeyReport) -> set[str]:
    """Return the names in the CLIP model of weights left at random: the projection, EVA-CLIP's attention norms."""
    return {key if key.startswith("visual.") else f"visual.trunk.{key}" for key in report.new}


def text_blocks(clip: ClipModel) -> list[nn.Module]:
    """Return the blocks of a model's text tower, open_clip's own or one of Hugging Face."""
    text: Any = getattr(clip.module, "text", clip.module)
    lists = (part for part in text.transformer.modules() if isinstance(part, nn.ModuleList))
    return list(next(lists))


def patch_dropouts(module: nn.Module) -> Iterator[PatchDropout | PatchDropoutWithIndices]:
    """Yield the layers that drop patches; `prob` is the fraction they drop."""
    return (layer for layer in module.modules() if isinstance(layer, PatchDropout | PatchDropoutWithIndices))
