"""The groups of a tower, from its stem to its projection: a lock leaves the last free, layer decay slows the first.

They are timm's for a timm encoder, and those of open_clip's own locks for the towers that are open_clip's: what stands
before the blocks, each block (the last one with the final norm), the projection.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from timm.models import group_parameters

from vfm.models.clip import ClipModel
from vfm.train import ParamGroup

Tower = Literal["image", "text"]

_STEM = re.compile(r"(transformer\.)?(class_emb|cls_emb|token_emb|positional_emb|conv\d|bn\d|ln_pre|embed|shared)")
_BLOCK = re.compile(r"(?:blocks?|layers?)\.?(\d+)\.")  # also of a ResNet and of Hugging Face's encoders
_FINAL_NORM = ("ln_post.", "ln_final.")


@dataclass(frozen=True)
class Rates:
    """How the weights of a tower learn.

    lr_scale: times the training's learning rate.
    layer_decay: a group's learning rate is so much of that of the one after it; the last group has the whole.
    weight_decay: None for the training's.
    """

    lr_scale: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float | None = None


def tower_of(name: str) -> Tower | None:
    """The tower of a weight of `ClipModel.module`; the temperature and SigLIP's bias are in neither."""
    if name in ("logit_scale", "logit_bias"):
        return None
    return "image" if name.startswith("visual.") else "text"


def tower_groups(clip: ClipModel, tower: Tower) -> list[list[str]]:
    """Names of a tower's weights in `clip.module`, group by group; the last group is the projection."""
    names = [name for name, _ in clip.module.named_parameters() if tower_of(name) == tower]
    if tower == "image" and isinstance(clip.module.visual, TimmModel):
        return _of_timm(clip.module.visual, names)
    prefix, text = ("visual.", None) if tower == "image" else ("text.", getattr(clip.module, "text", None))
    inner = {name: name.removeprefix(prefix) for name in names}
    last = max((int(found[1]) + 1 for name in inner.values() if (found := _BLOCK.search(name))), default=0)
    # open_clip knows no projection after Hugging Face's encoders: it is as free as their last block.
    end = last if isinstance(text, HFTextEncoder) else last + 1
    groups: dict[int, list[str]] = {}
    for name, own in inner.items():
        groups.setdefault(_place(own, last, end), []).append(name)
    return [groups[place] for place in sorted(groups)]


def parameter_groups(clip: ClipModel, exempt: Collection[str], image: Rates, text: Rates) -> list[ParamGroup]:
    """What of a model is trained, and how; vectors, scalars and what is exempt are not decayed.

    Args:
        exempt: names in `clip.module` of further weights that are not decayed, such as positions.
        image: the vision tower's rates.
        text: the text tower's rates.

    Source: Sun et al. 2023, EVA-CLIP (arXiv:2303.15389). EVA's code gives the final norm the rate of the projection;
    here, as in timm, it has that of the last block.
    """
    rates: dict[str, tuple[float, float | None]] = {}
    towers: dict[Tower, Rates] = {"image": image, "text": text}
    for tower, rate in towers.items():
        for height, names in enumerate(reversed(tower_groups(clip, tower))):
            rates |= dict.fromkeys(names, (rate.lr_scale * rate.layer_decay**height, rate.weight_decay))
    groups: dict[tuple[float, float | None], ParamGroup] = {}
    for name, parameter in clip.module.named_parameters():
        if parameter.requires_grad:
            lr_scale, decay = rates.get(name, (1.0, None))
            key = (lr_scale, decay if parameter.ndim > 1 and name not in exempt else 0.0)
            groups.setdefault(key, ParamGroup([], *key)).params.append(parameter)
    return sorted(groups.values(), key=lambda group: group.weight_decay == 0.0)  # as a task's own groups: decayed first


def _of_timm(visual: TimmModel, names: list[str]) -> list[list[str]]:
    """timm's own groups; what open_clip puts behind the encoder goes with the last of them."""
    trunk: Any = visual.trunk
    by_number: dict[int, list[str]] = group_parameters(trunk, trunk.group_matcher())
    groups = [[f"visual.trunk.{name}" for name in by_number[number]] for number in sorted(by_number)]
    groups[-1] += [name for name in names if not name.startswith("visual.trunk.")]
    return groups


def _place(name: str, last: int, end: int) -> int:
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    if _STEM.match(name):
        return 0
    return last if name.startswith(_FINAL_NORM) else end
