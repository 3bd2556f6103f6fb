"""Check data, model and towers of `clip.train` before it runs.

Models are built on the meta device, where even a large one costs neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vfm.models import (
    PROBES,
    VISION_WEIGHTS_FILE,
    ClipModel,
    Preprocess,
    blueprint,
    build_vision,
    check_normalization,
    check_same_computation,
    init_vision_tower,
    planned_clip,
    planned_clip_config,
    vision_preprocess,
)
from vfm.plugin import Preflight, Ref, UserError, VisionCheckpoint
from vfm.train import prepare_towers
from vfm_clip.dataset_checks import check_datasets, check_makers
from vfm_clip.stages import ClipTrain
from vfm_clip.task import ClipTask
from vfm_clip.teacher_check import check_teacher
from vfm_clip.text_tower_init import check_text
from vfm_clip.towers import trained_towers


@dataclass(frozen=True)
class Encoder:
    """A vision encoder on the meta device, with its timm name, image preprocessing and weight shapes."""

    architecture: str
    model: nn.Module
    preprocess: Preprocess
    shapes: dict[str, Tensor]


def check_clip_train(config: ClipTrain, ctx: Preflight) -> None:
    """Check data, model, towers, tokenizer and teacher, as far as they are known.

    Raises:
        UserError: If something is wrong. The message describes the first mistake.
    """
    for tower in (config.vision, config.text):
        tower.trained.check()
    balanced = config.loading.sampler == "balanced"
    check_makers(config.portions, ctx, balanced=balanced)
    datasets = {}
    for portion in config.portions:
        data = ctx.artifact(portion.data)
        if data:
            datasets[str(portion.data)] = data
    check_datasets(datasets, config.portions, config.language, config.global_batch_size, balanced=balanced)
    clip = check_towers(config, ctx)
    if not clip:
        return
    clip.tokenize(PROBES)  # refuses a tokenizer that does not fit the text tower
    ClipTask(clip, loss=config.loss)  # refuses models that are more than two towers
    if config.loss.teacher_ref:
        teacher = planned_clip(ctx, config.loss.teacher_ref)
    else:
        teacher = None
    if teacher:
        check_teacher(clip, teacher)


def check_towers(config: ClipTrain, ctx: Preflight) -> ClipModel | None:
    """Check that a model's towers fit their initial weights.

    Returns:
        The model as a blueprint, or None if it starts from a checkpoint that does not exist yet.

    Raises:
        UserError: If a name is unknown, or a tower does not fit.
    """
    if config.init:
        clip = planned_clip(ctx, config.init, config.image_size, config.vision.noise)
    else:
        clip = blueprint(config.model, config.image_size, noise=config.vision.noise)
    if not clip:
        return None
    encoder = find_encoder(ctx, config.init_vision) if config.init_vision else None
    if encoder:
        check_vision(clip, encoder, str(config.init_vision))
        if config.vision.normalization == "model":
            check_normalization(encoder.architecture, encoder.preprocess, clip)
    text_config = planned_clip_config(ctx, config.init_text) if config.init_text else None
    if text_config:
        check_text(text_config, clip, str(config.init_text))
    prepare_towers(trained_towers(clip, config.vision, config.text))
    return clip


def find_encoder(ctx: Preflight, ref: Ref[VisionCheckpoint]) -> Encoder | None:
    """Find the vision encoder that an input refers to.

    An existing artifact is read. Otherwise the encoder is built from the field `model` or `source` of the stage that
    makes it, at that stage's `image_size`.

    Returns:
        The encoder, or None if it is only known after its stage has run.
    """
    checkpoint = ctx.artifact(ref)
    if checkpoint:
        tensors = {}
        # Shapes from the header, which takes no time, whatever the size of the file.
        with safe_open(checkpoint.path / VISION_WEIGHTS_FILE, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                tensors[key] = torch.empty(file.get_slice(key).get_shape(), device="meta")
        with torch.device("meta"):
            encoder = build_vision(f"local-dir:{checkpoint.path}")
        return Encoder(checkpoint.architecture, encoder, vision_preprocess(encoder), tensors)
    stage = ctx.stage(ref)
    model: Any = getattr(stage, "model", None) or getattr(stage, "source", None)
    name = model.get("architecture") if isinstance(model, Mapping) else model
    if not isinstance(name, str) or ":" in name:  # a hub or folder is read at run time
        return None
    try:
        with torch.device("meta"):
            encoder = build_vision(model, image_size=getattr(stage, "image_size", None))
    except UserError:  # a folder, or a mistake that the other stage's preflight reports
        return None
    return Encoder(name, encoder, vision_preprocess(encoder), encoder.state_dict())


def check_vision(clip: ClipModel, encoder: Encoder, ref: str) -> None:
    """Check that an encoder fits a model's vision tower.

    Args:
        clip: The model.
        encoder: Encoder whose weights the tower starts from.
        ref: Name of the encoder, for messages.

    Raises:
        UserError: If it does not fit. The message suggests CLIP models that it fits.
    """
    try:
        _check_fit(clip, encoder)
    except UserError as error:
        names = [name for name in models_with_tower(encoder.architecture) if _fits(name, encoder)]
        if names:
            hint = f"use model {' or '.join(names)}"
        else:
            hint = str(error).removeprefix(f"{clip.name}: ")
        raise UserError(
            f"model {clip.name} cannot use init_vision '{ref}' ({encoder.architecture}) as its vision tower; {hint}"
        ) from None


def models_with_tower(architecture: str) -> list[str]:
    """List open_clip's models whose vision tower is this timm encoder."""
    name = architecture.removeprefix("timm/").split(".")[0]
    models = []
    for model in open_clip.list_models():
        config = open_clip.get_model_config(model)
        if config["vision_cfg"].get("timm_model_name") == name:
            models.append(model)
    return models


def _fits(model: str, encoder: Encoder) -> bool:
    try:
        _check_fit(blueprint(model), encoder)
    except UserError:
        return False
    return True


def _check_fit(clip: ClipModel, encoder: Encoder) -> None:
    init_vision_tower(encoder.shapes, clip)
    check_same_computation(encoder.architecture, encoder.model, clip)
