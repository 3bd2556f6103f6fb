"""What can be known of a training before it starts: the model exists, and its vision tower takes the encoder to come.

Everything is built on the meta device, where a model of any size costs neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from safetensors import safe_open
from torch import Tensor

from vfm.artifacts import VisionCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel, blueprint
from vfm.models.hand_over import check_activation, hand_over
from vfm.models.vision import WEIGHTS_FILE, build_vision
from vfm.stage import Preflight, Ref


@dataclass(frozen=True)
class Encoder:
    """A vision encoder as far as it can be known: its timm name, and its weights' shapes as meta tensors."""

    architecture: str
    shapes: dict[str, Tensor]


def find_encoder(ctx: Preflight, ref: Ref[VisionCheckpoint]) -> Encoder | None:
    """The encoder that a ref will bring, or None where that shows only when its stage has run.

    It is the artifact's, or else what the stage that makes it says in a field `model` or `source` (with `image_size`).
    """
    if checkpoint := ctx.artifact(ref):
        with safe_open(checkpoint.path / WEIGHTS_FILE, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
        return Encoder(checkpoint.architecture, {k: torch.empty(s, device="meta") for k, s in shapes.items()})
    stage = ctx.stage(ref)
    model: Any = getattr(stage, "model", None) or getattr(stage, "source", None)
    name = model.get("architecture") if isinstance(model, Mapping) else model
    if not isinstance(name, str) or ":" in name:  # a folder or the hub: read when the stage runs
        return None
    try:
        with torch.device("meta"):
            encoder = build_vision(model, image_size=getattr(stage, "image_size", None))
    except UserError:  # a folder too, or a mistake that the stage's own preflight tells
        return None
    return Encoder(name, encoder.state_dict())


def check_vision(clip: ClipModel, encoder: Encoder, ref: str) -> None:
    """Refuses an encoder that does not go into a model's vision tower, and names a CLIP model that it goes into.

    Raises:
        UserError: it does not fit.
    """
    try:
        hand_over(encoder.shapes, clip)
        check_activation(encoder.architecture, clip)
    except UserError as error:
        fitting = [name for name in models_with_tower(encoder.architecture) if _fits(name, encoder)]
        hint = f"model: {' or '.join(fitting)} can" if fitting else str(error).removeprefix(f"{clip.name}: ")
        raise UserError(
            f"model {clip.name} cannot take init_vision '{ref}' ({encoder.architecture}) as its vision tower; {hint}"
        ) from None


def models_with_tower(architecture: str) -> list[str]:
    """Names of the CLIP models that open_clip knows whose vision tower is this timm encoder."""
    name = architecture.removeprefix("timm/").split(".")[0]
    configs = {model: open_clip.get_model_config(model) for model in open_clip.list_models()}
    return [model for model, config in configs.items() if config["vision_cfg"].get("timm_model_name") == name]


def _fits(model: str, encoder: Encoder) -> bool:
    try:
        clip = blueprint(model)
        hand_over(encoder.shapes, clip)
        check_activation(encoder.architecture, clip)
    except UserError:
        return False
    return True
