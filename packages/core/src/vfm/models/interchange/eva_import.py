"""Loading of the official EVA checkpoint files into timm's encoders and open_clip's models, with a report on every key.

One tower can be loaded without the other, and position embeddings and patch kernels are resized to the model's. If the
source names no architecture, the model in timm or open_clip with the file's shapes is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import open_clip
import timm
import torch
from open_clip.model import convert_to_custom_text_state_dict
from torch import nn

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel, blueprint
from vfm.models.clip.clip_config import unsupported_eva_clip
from vfm.models.interchange.eva_layouts import PRE_TRAINING, ROPE, VISUAL, Tensors, layout_of, to_timm
from vfm.models.vision.vision import build_vision
from vfm.models.weight_transfer import TRUNK, KeyReport, PatchResize, TransferRules, transfer_weights


@dataclass(frozen=True)
class ReadOptions:
    """How a file of weights is read."""

    part: Literal["both", "visual", "text"] = "both"  # tower to read; the other one is initialised with seed 0
    ema: bool = True  # use averaged weights if the file has them
    patch_resize: PatchResize = "pinv"  # how patches and positions of an EVA file are resized
    text_from: ClipModel | None = None  # replaces the text tower, the logit scale and the preprocessing


DEFAULT_OPTIONS = ReadOptions()
_OTHER_TOWER = {
    "visual": {"text.": "of the text tower, which is not imported", "logit_": "belongs to both towers together"},
    "text": {"visual.": "of the vision tower, which is not imported", "logit_": "belongs to both towers together"},
}
_OFFICIAL_PREFIXES = ("lm_head.", "decoder_", "visual.blocks.", "visual.cls_token")


def is_official(tensors: Tensors) -> bool:
    """Check whether the names belong to the official EVA code and not also to timm.

    EVA-01's names in the classification layout are the same as timm's.
    """
    return any(key.startswith(_OFFICIAL_PREFIXES) or ".mlp.w" in key or "attn.inner_attn_ln" in key for key in tensors)


def vision_arguments(tensors: Tensors) -> dict[str, Any]:
    """Infer arguments of the encoder from the file.

    They are the number of the head's outputs, and the pooling.
    """
    prefix = _prefix(tensors)
    head = tensors.get(f"{prefix}head.weight")
    if head is None or "mask_token" in tensors:
        return {"num_classes": 0}
    pooling = "avg" if f"{prefix}fc_norm.weight" in tensors else "token"
    return {"num_classes": len(head), "global_pool": pooling}


def load_eva_vision(
    tensors: Tensors, model: nn.Module, name: str, where: str, options: ReadOptions, report: KeyReport
) -> None:
    """Load a file's encoder, in any of the layouts, into a timm encoder that was built with `vision_arguments`.

    Args:
        tensors: The state dict of the file.
        model: The encoder.
        name: Name of the encoder, for errors.
        where: The file, for errors.
        options: How the file is read.
        report: Filled with the fate of every key.

    Raises:
        UserError: If a key is missing, unknown or of another shape. Nothing is loaded then.
    """
    rename = to_timm(tensors)
    dropped = {**PRE_TRAINING, **ROPE}
    if layout_of(tensors) == "clip":
        dropped.update(_OTHER_TOWER["visual"])

    def to_encoder(key: str) -> str:
        return rename(key).removeprefix(TRUNK)

    where = f"{where}: does not fit {name}"
    rules = TransferRules(dropped, {}, to_encoder, options.patch_resize, where, "the file", "the encoder")
    transfer_weights(tensors, model, rules, report)


def load_eva_clip(tensors: Tensors, model: ClipModel, where: str, options: ReadOptions, report: KeyReport) -> None:
    """Load a file's CLIP model, or one of its towers, into a model with a separate text tower (`custom_text`).

    Args:
        tensors: The state dict of the file.
        model: The CLIP model.
        where: The file, for errors.
        options: How the file is read, and which tower.
        report: Filled with the fate of every key.

    Raises:
        UserError: See `load_eva_vision`.
    """
    tensors = convert_to_custom_text_state_dict(dict(tensors))  # older files have no `text.` before their keys
    other = _OTHER_TOWER.get(options.part, {})
    new = dict.fromkeys(other, f"not of the {options.part} tower: initialised")
    where = f"{where}: does not fit {model.name}"
    dropped = {**ROPE, **other}
    rules = TransferRules(dropped, new, to_timm(tensors), options.patch_resize, where, "the file", "the model")
    transfer_weights(tensors, model.module, rules, report)


def vision_architecture(tensors: Tensors, where: str) -> str:
    """Find the timm name of a file's encoder.

    Raises:
        UserError: If timm has no encoder of its shapes, or more than one.
    """

    def load(name: str) -> None:
        with torch.device("meta"):
            model = build_vision(name, **vision_arguments(tensors))
        load_eva_vision(_on_meta(tensors), model, name, where, DEFAULT_OPTIONS, KeyReport())

    names = [name for name in _of_its_size(tensors, timm.list_models("eva*"), where) if _fits(load, name)]
    # Some encoders exist twice in timm, also as the tower of a CLIP model. The file's layout decides.
    as_clip = [name for name in names if ("_clip_" in name) == (layout_of(tensors) == "clip")]
    return _only(as_clip or names, where, "timm")


def clip_architecture(tensors: Tensors, where: str) -> str:
    """Find the open_clip name of a file's CLIP model.

    Raises:
        UserError: If open_clip has no model of its shapes, or more than one.
    """
    towers: dict[str, str] = {}
    for name in _eva_clip_names():
        config = open_clip.get_model_config(name)
        towers[name] = str(config["vision_cfg"].get("timm_model_name"))

    def load(name: str) -> None:
        load_eva_clip(_on_meta(tensors), blueprint(name), where, DEFAULT_OPTIONS, KeyReport())

    sized = set(_of_its_size(tensors, towers.values(), where))
    names = [name for name, tower in towers.items() if tower in sized and _fits(load, name)]
    return _only(names, where, "open_clip")


def _prefix(tensors: Tensors) -> str:
    for prefix in (TRUNK, VISUAL):
        if f"{prefix}pos_embed" in tensors:
            return prefix
    return ""


def _eva_clip_names() -> list[str]:
    return [name for name in open_clip.list_models() if name.startswith("EVA")]


def _on_meta(tensors: Tensors) -> Tensors:
    return {key: value.to("meta") for key, value in tensors.items()}


def _of_its_size(tensors: Tensors, names: Iterable[str], where: str) -> list[str]:
    """Select the encoders whose names end in the file's patch size and image size."""
    prefix = _prefix(tensors)
    kernel = tensors.get(f"{prefix}patch_embed.proj.weight")
    positions = tensors.get(f"{prefix}pos_embed")
    if kernel is None or positions is None:
        raise UserError(
            f"{where}: not an EVA checkpoint, so its architecture is needed: ARCHITECTURE,{where} in a command, source"
            f" and pretrained in a recipe (vfm doctor {where} may find it)"
        )
    size = {4096: "8B", 5120: "18B"}.get(positions.shape[-1])  # by width
    if size:
        raise unsupported_eva_clip(where, size)
    patch = kernel.shape[-1]
    side = patch * isqrt(positions.shape[1] - 1)
    return [name for name in names if re.search(rf"patch{patch}_(clip_)?{side}$", name)]


def _fits(load: Callable[[str], None], name: str) -> bool:
    try:
        load(name)
    except UserError:
        return False
    return True


def _only(names: list[str], where: str, library: str) -> str:
    if len(names) == 1:
        return names[0]
    problem = f"fits several models of {library}: {', '.join(names)}" if names else f"fits no EVA model of {library}"
    raise UserError(f"{where}: {problem}; set source to the architecture and pretrained to the file")
