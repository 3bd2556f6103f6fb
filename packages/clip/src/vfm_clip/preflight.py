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

from vfm.artifacts import ClipCheckpoint, VisionCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel, blueprint
from vfm.models.clip_config import clip_config, read_config
from vfm.models.hand_over import check_activation, hand_over
from vfm.models.vision import WEIGHTS_FILE, build_vision
from vfm.stage import Preflight, Ref, Stage
from vfm_clip.text_tower import check_text
from vfm_clip.tower_training import TowerTraining
from vfm_clip.towers import lock_as_planned


@dataclass(frozen=True)
class Encoder:
    """A vision encoder as far as it can be known: its timm name, and its weights' shapes as meta tensors."""

    architecture: str
    shapes: dict[str, Tensor]


def check_towers(plan: TowerTraining, ctx: Preflight) -> ClipModel | None:
    """The model of a plan as a blueprint, its towers compared with what they are to start from.

    None where it starts from a checkpoint of which nothing is known yet.

    Raises:
        UserError: a name is not known, or a tower does not take what is to come.
    """
    if plan.init:
        found = find_clip(ctx, plan.init, plan.image_size, plan.noise)
    else:
        found = blueprint(plan.model, plan.image_size, noise=plan.noise)
    if not (clip := found):
        return None
    if plan.init_vision and (encoder := find_encoder(ctx, plan.init_vision)):
        check_vision(clip, encoder, str(plan.init_vision))
    if plan.init_text and (config := find_config(ctx, plan.init_text)):
        check_text(config, clip, str(plan.init_text))
    lock_as_planned(plan, clip)
    return clip


def find_clip(
    ctx: Preflight,
    ref: Ref[ClipCheckpoint],
    image_size: int | None = None,
    noise: Mapping[str, float] | None = None,
) -> ClipModel | None:
    """The model that a ref will bring, as a `blueprint`; None where that shows only when its stage has run."""
    checkpoint = ctx.artifact(ref)
    found = checkpoint or find_config(ctx, ref)
    if not found:
        return None
    clip = blueprint(found, image_size, noise=noise)
    clip.name = clip.name if checkpoint else str(ref)
    return clip


def find_config(ctx: Preflight, ref: Ref[ClipCheckpoint]) -> Mapping[str, Any] | None:
    """open_clip's configuration of the model that a ref will bring; None where that shows only when its stage has run.

    It is the artifact's, or else what the stage that makes it says in a field `model` or `source`, or that which it
    starts from (`init`); with its `image_size`.
    """
    if checkpoint := ctx.artifact(ref):
        config: Mapping[str, Any] = read_config(checkpoint.path)["model_cfg"]
        return config
    stage = ctx.stage(ref)
    start, size = getattr(stage, "init", None), getattr(stage, "image_size", None)
    found = find_config(ctx, start) if start else _named_config(stage)
    return {**found, "vision_cfg": {**found["vision_cfg"], "image_size": size}} if found and size else found


def _named_config(stage: Stage | None) -> Mapping[str, Any] | None:
    model: Any = getattr(stage, "model", None) or getattr(stage, "source", None)
    if isinstance(model, Mapping) or not isinstance(model, str) or ":" in model:  # the latter is read when it runs
        return model if isinstance(model, Mapping) else None
    try:
        return clip_config(model)
    except UserError:  # a folder or file, or a mistake that the stage's own preflight tells
        return None


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
