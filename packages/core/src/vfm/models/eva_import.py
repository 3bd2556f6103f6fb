"""Files of the official EVA checkpoints in timm's encoders and open_clip's models, strictly, by `eva_layouts`.

Towers can be taken alone, position embeddings and patch kernels go to the model's size, and where the source names no
architecture, it is the one that timm or open_clip knows under the file's shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Literal

import open_clip
import timm
import torch
from open_clip.model import convert_to_custom_text_state_dict
from torch import nn

from vfm.config import UserError
from vfm.models.clip import ClipModel, blueprint
from vfm.models.clip_config import too_new
from vfm.models.eva_layouts import PRE_TRAINING, ROPE, VISUAL, Tensors, layout_of, to_timm
from vfm.models.fitting import TRUNK, KeyReport, PatchResize, Rules, fit
from vfm.models.vision import build_vision

Part = Literal["both", "visual", "text"]


@dataclass(frozen=True)
class Reading:
    """How a file of weights is read.

    `patch_resize` is how EVA's patches and positions come to another size (`fitting.resized`). The `report` is filled
    with what became of every key where a file is read by our own rules: EVA's, or one tower of a CLIP model's.
    """

    part: Part = "both"  # of a CLIP model; the other tower is drawn from seed 0
    ema: bool = True  # take averaged weights where the file has them
    patch_resize: PatchResize = "pinv"
    report: KeyReport = field(default_factory=KeyReport)


_OTHER = {
    "visual": {"text.": "of the text tower, which is not asked for", "logit_": "belongs to both towers together"},
    "text": {"visual.": "of the vision tower, which is not asked for", "logit_": "belongs to both towers together"},
}
_MARKS = ("lm_head.", "decoder_", "visual.blocks.", "visual.cls_token")


def is_official(tensors: Tensors) -> bool:
    """Whether only the official EVA code names tensors so; in its classification layout EVA-01's names are timm's."""
    return any(key.startswith(_MARKS) or ".mlp.w" in key or "attn.inner_attn_ln" in key for key in tensors)


def vision_arguments(tensors: Tensors) -> dict[str, Any]:
    """What a file says of its encoder beside the architecture: the head's outputs and the place of its norm."""
    prefix = _prefix(tensors)
    head = tensors.get(f"{prefix}head.weight")
    if head is None or "mask_token" in tensors:
        return {"num_classes": 0}
    return {"num_classes": len(head), "global_pool": "avg" if f"{prefix}fc_norm.weight" in tensors else "token"}


def load_eva_vision(tensors: Tensors, model: nn.Module, name: str, where: str, reading: Reading) -> None:
    """Loads a file's encoder, of any of the layouts, into a timm encoder that was built with `vision_arguments`.

    Args:
        name: the encoder's, for a mistake; and so
        where: the file.

    Raises:
        UserError: a key is missing, unknown or of another shape; nothing is loaded.
    """
    rename = to_timm(tensors)
    dropped = {**PRE_TRAINING, **ROPE, **(_OTHER["visual"] if layout_of(tensors) == "clip" else {})}

    def to_encoder(key: str) -> str:
        return rename(key).removeprefix(TRUNK)

    where = f"{where}: does not fit {name}"
    rules = Rules(dropped, {}, to_encoder, reading.patch_resize, where, "the file", "the encoder")
    fit(tensors, model, rules, reading.report)


def load_eva_clip(tensors: Tensors, model: ClipModel, where: str, reading: Reading) -> None:
    """Loads a file's CLIP model, or one tower of it, into a model with a text tower of its own (`custom_text`).

    Raises:
        UserError: as `load_eva_vision`.
    """
    tensors = convert_to_custom_text_state_dict(dict(tensors))  # where an older file has no `text.` before its keys
    other = _OTHER.get(reading.part, {})
    new = dict.fromkeys(other, f"not of the {reading.part} tower: as drawn")
    where = f"{where}: does not fit {model.name}"
    rules = Rules({**ROPE, **other}, new, to_timm(tensors), reading.patch_resize, where, "the file", "the model")
    fit(tensors, model.module, rules, reading.report)


def vision_architecture(tensors: Tensors, where: str) -> str:
    """The timm name of a file's encoder.

    Raises:
        UserError: timm knows no encoder of its shapes, or more than one.
    """

    def fits(name: str) -> None:
        with torch.device("meta"):
            model = build_vision(name, **vision_arguments(tensors))
        load_eva_vision(_meta(tensors), model, name, where, Reading())

    names = [name for name in _of_its_size(tensors, timm.list_models("eva*"), where) if _holds(fits, name)]
    as_clip = [name for name in names if ("_clip_" in name) == (layout_of(tensors) == "clip")]
    return _the_one(as_clip or names, where, "timm")


def clip_architecture(tensors: Tensors, where: str) -> str:
    """The open_clip name of a file's CLIP model.

    Raises:
        UserError: open_clip knows no model of its shapes, or more than one.
    """
    towers = {name: str(open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name")) for name in _clips()}

    def fits(name: str) -> None:
        load_eva_clip(_meta(tensors), blueprint(name), where, Reading())

    sized = set(_of_its_size(tensors, towers.values(), where))
    names = [name for name, tower in towers.items() if tower in sized and _holds(fits, name)]
    return _the_one(names, where, "open_clip")


def _prefix(tensors: Tensors) -> str:
    return next((prefix for prefix in (TRUNK, VISUAL) if f"{prefix}pos_embed" in tensors), "")


def _clips() -> list[str]:
    return [name for name in open_clip.list_models() if name.startswith("EVA")]


def _meta(tensors: Tensors) -> Tensors:
    return {key: value.to("meta") for key, value in tensors.items()}


def _of_its_size(tensors: Tensors, names: Iterable[str], where: str) -> list[str]:
    """The encoders whose names end in the file's patch size and image size."""
    prefix = _prefix(tensors)
    kernel, positions = (tensors.get(f"{prefix}{key}") for key in ("patch_embed.proj.weight", "pos_embed"))
    if kernel is None or positions is None:
        raise UserError(
            f"{where}: not one of EVA's checkpoints; name the architecture as source, the file as pretrained"
        )
    if size := {4096: "8B", 5120: "18B"}.get(positions.shape[-1]):
        raise too_new(where, size)
    patch = kernel.shape[-1]
    side = patch * isqrt(positions.shape[1] - 1)
    return [name for name in names if re.search(rf"patch{patch}_(clip_)?{side}$", name)]


def _holds(fits: Callable[[str], None], name: str) -> bool:
    try:
        fits(name)
    except UserError:
        return False
    return True


def _the_one(names: list[str], where: str, library: str) -> str:
    if len(names) == 1:
        return names[0]
    found = f"fits several of {library}'s models: {', '.join(names)}" if names else f"fits no EVA model of {library}'s"
    raise UserError(f"{where}: {found}; name the architecture as source, the file as pretrained")
