"""Combine a student with a taught class token and its teacher's text tower to a CLIP model (`eva.clip`)."""

# D width of the student, E width of the joint space

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vfm.models import (
    ClipModel,
    blueprint,
    build_clip,
    build_vision,
    check_same_computation,
    init_vision_tower,
    load_clip,
    planned_clip_config,
    read_masked_modelling,
    save_clip,
    vision_preprocess,
)
from vfm.plugin import ClipCheckpoint, Context, Preflight, Stage, UserError, VisionCheckpoint, store_files
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.stages import EvaClip, EvaPretrain

__all__ = ["check_eva_clip", "clip_of_student", "join_eva_clip"]

MANIFEST_FILE = "manifest.json"


def check_eva_clip(config: EvaClip, ctx: Preflight) -> None:
    """Check that the given teacher taught the student's class token, and that open_clip can build the student.

    Raises:
        UserError: If a check fails.
    """
    encoder = ctx.artifact(config.encoder)
    stage = ctx.stage(config.encoder)
    if isinstance(stage, EvaPretrain):
        _check_listed(config, stage)
    elif encoder:
        _class_head(encoder, config.teacher_number)
        _check_recorded(config, encoder, ctx.identities.get(config.clip))
    student = _student(encoder, stage, ctx)
    if student is None:
        return
    clip_config = planned_clip_config(ctx, config.clip)
    if clip_config:
        _check_tower(student, clip_config, str(config.encoder))


def join_eva_clip(config: EvaClip, ctx: Context) -> ClipCheckpoint:
    """Save the student and the text tower as a CLIP model."""
    encoder = ctx.load(config.encoder)
    clip = load_clip(ctx.load(config.clip))
    return save_clip(clip_of_student(encoder, clip, config.teacher_number), ctx.directory)


def clip_of_student(encoder: VisionCheckpoint, clip: ClipModel, teacher_number: int = 0) -> ClipModel:
    """Build a CLIP model from a student's encoder, its class token's head, and the teacher's text tower.

    Args:
        encoder: A student whose class token was taught.
        clip: The teacher.
        teacher_number: Index of the teacher in the student's training run, from 0.

    Raises:
        UserError: If this teacher did not teach the class token, or open_clip has no such model.
    """
    weight, bias = _class_head(encoder, teacher_number)
    width = clip.config["embed_dim"]
    if len(weight) != width:
        raise UserError(f"{encoder.path}: its class token predicts {len(weight)} channels, {clip.name} has {width}")
    joined = build_clip(_with_tower(clip.config, encoder.architecture, encoder.image_size), seed=0)
    init_vision_tower(encoder, joined, take_normalization=True)
    module: Any = joined.module
    projection: nn.Linear = module.visual.head.proj
    with torch.no_grad():
        projection.weight.copy_(weight)
        projection.bias.copy_(bias)
    text = {key: value for key, value in clip.module.state_dict().items() if not key.startswith("visual.")}
    module.load_state_dict({**module.state_dict(), **text})
    return joined


def _with_tower(clip: Mapping[str, Any], architecture: str, image_size: int) -> dict[str, Any]:
    """Configure an open_clip model whose vision tower is a timm encoder with a linear head."""
    vision_cfg = {
        "timm_model_name": architecture,
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "linear",
        # The student's head, which becomes the projection, has a bias. CLIP's own projection has none.
        "timm_proj_bias": True,
        "image_size": image_size,
    }
    return {**clip, "vision_cfg": vision_cfg}


def _check_listed(config: EvaClip, student: EvaPretrain) -> None:
    """Check that the CLIP model teaches the class token of a student that is trained in the same recipe.

    Raises:
        UserError: If it does not.
    """
    taught_by = student.taught_by
    number = config.teacher_number
    if number >= len(taught_by) or not taught_by[number].class_weight:
        raise _no_class_head(str(config.encoder), number)
    if taught_by[number].teacher != config.clip:
        raise UserError(
            f"clip: expected {str(taught_by[number].teacher)!r}, which teaches the class token of"
            f" {str(config.encoder)!r} as teacher {number}; got {str(config.clip)!r}"
        )


def _check_recorded(config: EvaClip, encoder: VisionCheckpoint, identity: str | None) -> None:
    """Check in the manifest of a saved student that the CLIP model with this identity taught its class token.

    Raises:
        UserError: If another model did.
    """
    file = encoder.path / MANIFEST_FILE
    if identity is None or not file.is_file():
        return
    training = store_files.read_record(file, "config", "inputs")
    teachers = training["config"].get("teachers") or []
    number = config.teacher_number
    if number >= len(teachers):  # a copy made by another stage, whose manifest lists no teachers
        return
    name = teachers[number]["teacher"]
    if training["inputs"].get(name) != identity:
        raise UserError(
            f"clip: {str(config.clip)!r} is not the model that taught the class token of {str(config.encoder)!r};"
            f" that was {name!r} of its training, teacher {number}"
        )


def _student(encoder: VisionCheckpoint | None, stage: Stage | None, ctx: Preflight) -> nn.Module | None:
    """Build the student without weights.

    Returns:
        The student. None if it depends on a stage that has not run.
    """
    with torch.device("meta"):
        if encoder:
            return build_vision(f"local-dir:{encoder.path}")
        if isinstance(stage, EvaPretrain):
            start = ctx.artifact(stage.start) if stage.start else None
            if start or not stage.start:
                return build_student(stage, start)
            return None
    return None


def _check_tower(student: Any, clip: Mapping[str, Any], encoder: str) -> None:
    """Check that building a student by its architecture name alone, as open_clip does, gives the same model.

    Raises:
        UserError: If it does not, because the student has further arguments.
    """
    name = student.pretrained_cfg["architecture"]
    tower = blueprint(_with_tower(clip, name, vision_preprocess(student).image_size))
    try:
        init_vision_tower(student.state_dict(), tower)
        check_same_computation(name, student, tower)
    except UserError as error:
        reason = str(error).removeprefix(f"{tower.name}: ")
        raise UserError(
            f"{encoder}: open_clip builds {name} by its name, without the other arguments of its model: {reason}"
        ) from None


def _class_head(encoder: VisionCheckpoint, teacher_number: int) -> tuple[Tensor, Tensor]:
    """Load weight, (E, D), and bias, (E,), of the head that predicts a teacher's image feature."""
    added = read_masked_modelling(encoder.path)
    name = f"class_heads.{teacher_number}"
    if f"{name}.weight" not in added:
        raise _no_class_head(str(encoder.path), teacher_number)
    return added[f"{name}.weight"], added[f"{name}.bias"]


def _no_class_head(encoder: str, teacher_number: int) -> UserError:
    return UserError(
        f"{encoder}: its class token is not taught by teacher {teacher_number}; set class_weight in `teachers` of"
        " eva.pretrain, and teacher_number to the teacher's place there, from 0"
    )
