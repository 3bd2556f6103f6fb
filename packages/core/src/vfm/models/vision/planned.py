"""Models of a plan: what is known of an input before its stage has run, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vfm.base import UserError
from vfm.interfaces import ClipCheckpoint, Cost, Preflight, Ref, Stage, VisionCheckpoint
from vfm.models.clip.clip import ClipModel, blueprint
from vfm.models.clip.clip_config import get_clip_config, read_clip_config
from vfm.models.vision.vision import build_vision, save_vision_config

STARTS = ("init", "clip", "start")  # fields of the model that a stage starts from


def planned_clip(
    ctx: Preflight,
    ref: Ref[ClipCheckpoint],
    image_size: int | None = None,
    noise: Mapping[str, float] | None = None,
) -> ClipModel | None:
    """Return the model of an input as a `blueprint`; None if it is only known after its stage has run."""
    checkpoint = ctx.artifact(ref)
    found = checkpoint or planned_clip_config(ctx, ref)
    if not found:
        return None
    clip = blueprint(found, image_size, noise=noise)
    clip.name = clip.name if checkpoint else str(ref)
    return clip


def planned_clip_config(ctx: Preflight, ref: Ref[ClipCheckpoint]) -> Mapping[str, Any] | None:
    """Return open_clip's configuration of an input; None if it is only known after its stage has run.

    It is the artifact's; else that of the field `model` or `source` of the stage that makes it, or of the model that
    the stage starts from, at the stage's `image_size`.
    """
    if checkpoint := ctx.artifact(ref):
        config: Mapping[str, Any] = read_clip_config(checkpoint.path)["model_cfg"]
        return config
    stage = ctx.stage(ref)
    start = next((value for name in STARTS if (value := getattr(stage, name, None))), None)
    size = getattr(stage, "image_size", None) if not hasattr(stage, "clip") else None  # of diva.tune: the generator's
    found = planned_clip_config(ctx, start) if start else _named_config(stage)
    return {**found, "vision_cfg": {**found["vision_cfg"], "image_size": size}} if found and size else found


def planned_encoder(ctx: Preflight, ref: Ref[ClipCheckpoint | VisionCheckpoint]) -> ClipModel | nn.Module | None:
    """Return the CLIP model or timm encoder of an input, without weights; None if it is not known yet."""
    checkpoint, stage = ctx.artifact(ref), ctx.stage(ref)
    made = type(checkpoint) if checkpoint else stage.makes if stage else None
    if made and issubclass(made, ClipCheckpoint):
        return planned_clip(ctx, ref)  # type: ignore[arg-type]
    source, size = _encoder_source(ctx, ref)
    if source is None:
        return None
    try:
        with torch.device("meta"):
            return build_vision(source, image_size=size)
    except UserError:  # a folder, or a mistake that the other stage's preflight reports
        return None


def planned_checkpoint(ctx: Preflight, ref: Ref[Any], folder: Path) -> VisionCheckpoint | None:
    """Return the encoder of an input; where it is not made yet, its configuration without weights, in a folder.

    None if it is no vision encoder, or not known yet.
    """
    if checkpoint := ctx.artifact(ref):
        return checkpoint if isinstance(checkpoint, VisionCheckpoint) else None
    model = planned_encoder(ctx, ref)
    return save_vision_config(model, folder) if isinstance(model, nn.Module) else None


def import_cost(config: Stage, ctx: Preflight) -> Cost:
    """Return the parameters and the disk of `models.clip` and `models.vision`."""
    model = planned_encoder(Preflight({config.name: config}, {}), Ref(config.name))
    if model is None:
        return Cost(unknown=("the model, which is read when the stage runs",))
    module = model.module if isinstance(model, ClipModel) else model
    weights = list(module.parameters())
    return Cost(sum(weight.numel() for weight in weights), disk=sum(weight.nbytes for weight in weights))


def _named_config(stage: Stage | None) -> Mapping[str, Any] | None:
    model: Any = getattr(stage, "model", None) or getattr(stage, "source", None)
    if isinstance(model, Mapping) or not isinstance(model, str) or ":" in model:  # a hub or folder is read at run time
        return model if isinstance(model, Mapping) else None
    try:
        return get_clip_config(model)
    except UserError:  # a folder or file, or a mistake that the other stage's preflight reports
        return None


def _encoder_source(ctx: Preflight, ref: Ref[Any]) -> tuple[str | Mapping[str, Any] | None, int | None]:
    """Return what `build_vision` builds an input's encoder of, and its image size; None for what is not known yet."""
    if checkpoint := ctx.artifact(ref):
        return f"local-dir:{checkpoint.path}", None
    stage = ctx.stage(ref)
    size, start = getattr(stage, "image_size", None), getattr(stage, "start", None) or getattr(stage, "encoder", None)
    if start:  # its model is that of the stage which it starts from
        model, own = _encoder_source(ctx, start)
        return model, size or own
    model = getattr(stage, "model", None) or getattr(stage, "source", None)
    return (None if isinstance(model, str) and ":" in model else model), size  # a hub or folder is read at run time
