"""Build inputs whose stages have not run yet on the meta device, from their configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from vfm.base import UserError
from vfm.interfaces import Artifact, ClipCheckpoint, Cost, Preflight, Ref, Stage, VisionCheckpoint
from vfm.models.clip.clip import ClipModel, blueprint
from vfm.models.clip.clip_config import get_clip_config, read_clip_config
from vfm.models.stages import FOLDER_PREFIX
from vfm.models.transformers_folders.encoders import timm_source, transformers_record
from vfm.models.vision.vision import build_vision, save_vision_config

STARTS = ("init", "clip", "start")  # fields of a stage that refer to the model it starts from


def planned_clip(
    ctx: Preflight,
    ref: Ref[ClipCheckpoint],
    image_size: int | None = None,
    noise: Mapping[str, float] | None = None,
) -> ClipModel | None:
    """Build the model of an input as a `blueprint`.

    Args:
        ctx: Plan of the recipe.
        ref: The input.
        image_size: Side of the model's input. Default: the configuration's.
        noise: As in `build_clip`.

    Returns:
        The model, or None if it is only known after its stage has run.
    """
    checkpoint = ctx.artifact(ref)
    source = checkpoint or planned_clip_config(ctx, ref)
    if not source:
        return None
    clip = blueprint(source, image_size, noise=noise)
    if not checkpoint:
        clip.name = str(ref)
    return clip


def planned_clip_config(ctx: Preflight, ref: Ref[ClipCheckpoint]) -> Mapping[str, Any] | None:
    """Find open_clip's configuration of an input.

    An existing artifact is read. Otherwise the configuration follows from the stage that makes it: from its field
    `model` or `source`, or from the model that it starts from, at the stage's `image_size`.

    Returns:
        The configuration, or None if it is only known after its stage has run.
    """
    checkpoint = ctx.artifact(ref)
    if checkpoint:
        config: Mapping[str, Any] = read_clip_config(checkpoint.path)["model_cfg"]
        return config
    stage = ctx.stage(ref)
    start = None
    for name in STARTS:
        start = start or getattr(stage, name, None)
    planned = planned_clip_config(ctx, start) if start else _named_config(stage)
    # The `image_size` of a stage with `clip` (diva.tune) is the generator's.
    size = None if hasattr(stage, "clip") else getattr(stage, "image_size", None)
    if planned and size:
        return {**planned, "vision_cfg": {**planned["vision_cfg"], "image_size": size}}
    return planned


def planned_encoder(ctx: Preflight, ref: Ref[ClipCheckpoint | VisionCheckpoint]) -> ClipModel | nn.Module | None:
    """Build the CLIP model or timm encoder of an input, without weights. Unknown models give None."""
    checkpoint, stage = ctx.artifact(ref), ctx.stage(ref)
    artifact_class: type[Artifact] | None = None
    if checkpoint:
        artifact_class = type(checkpoint)
    elif stage:
        artifact_class = stage.makes
    if artifact_class and issubclass(artifact_class, ClipCheckpoint):
        return planned_clip(ctx, ref)  # type: ignore[arg-type]
    try:
        source, size = _encoder_source(ctx, ref)
        if source is None:
            return None
        with torch.device("meta"):
            return build_vision(source, image_size=size)
    except UserError:  # a folder, or a mistake that the other stage's preflight reports
        return None


def planned_checkpoint(ctx: Preflight, ref: Ref[Any], folder: Path) -> VisionCheckpoint | None:
    """Find the encoder of an input, or save its planned configuration, without weights, in a folder.

    Args:
        ctx: Plan of the recipe.
        ref: The input.
        folder: Folder for the configuration.

    Returns:
        The encoder, or None if the input is not a vision encoder, or not known yet.
    """
    checkpoint = ctx.artifact(ref)
    if checkpoint:
        if isinstance(checkpoint, VisionCheckpoint):
            return checkpoint
        return None
    model = planned_encoder(ctx, ref)
    if not isinstance(model, nn.Module):
        return None
    return save_vision_config(model, folder)


@contextmanager
def known_checkpoint(ctx: Preflight, ref: Ref[Any]) -> Iterator[VisionCheckpoint | None]:
    """Find the encoder of an input as `planned_checkpoint` does, in a folder that exists inside the block."""
    with TemporaryDirectory() as folder:
        yield planned_checkpoint(ctx, ref, Path(folder))


def import_cost(config: Stage, ctx: Preflight) -> Cost:
    """Estimate the parameters and the disk space of `models.clip` and `models.vision`."""
    model = planned_encoder(Preflight({config.name: config}, {}), Ref(config.name))
    if model is None:
        return Cost(unknown=("the model, which is read when the stage runs",))
    module = model.module if isinstance(model, ClipModel) else model
    num_parameters = 0
    num_bytes = 0
    for weight in module.parameters():
        num_parameters += weight.numel()
        num_bytes += weight.nbytes
    return Cost(num_parameters, disk=num_bytes)


def _named_config(stage: Stage | None) -> Mapping[str, Any] | None:
    model: Any = getattr(stage, "model", None) or getattr(stage, "source", None)
    if isinstance(model, Mapping):
        return model
    if not isinstance(model, str) or ":" in model:  # a hub or folder is read at run time
        return None
    try:
        return get_clip_config(model)
    except UserError:  # a folder or file, or a mistake that the other stage's preflight reports
        return None


def _encoder_source(ctx: Preflight, ref: Ref[Any]) -> tuple[str | Mapping[str, Any] | None, int | None]:
    """Find the argument with which `build_vision` builds an input's encoder, and its image size, as far as known."""
    checkpoint = ctx.artifact(ref)
    if checkpoint:
        return f"local-dir:{checkpoint.path}", None
    stage = ctx.stage(ref)
    size = getattr(stage, "image_size", None)
    start = getattr(stage, "start", None) or getattr(stage, "encoder", None)
    if start:  # the stage keeps the architecture of the model that it starts from
        model, start_size = _encoder_source(ctx, start)
        return model, size or start_size
    model = getattr(stage, "model", None) or getattr(stage, "source", None)
    return _folder_source(model) if isinstance(model, str) else model, size


def _folder_source(name: str) -> str | Mapping[str, Any] | None:
    """Find the argument of `build_vision` for a name of timm or a folder. A name of the hub has none."""
    folder = Path(name.removeprefix(FOLDER_PREFIX))
    if folder.is_dir():
        if transformers_record(folder):
            return timm_source(folder)
        return f"{FOLDER_PREFIX}{folder}"
    return None if ":" in name else name
