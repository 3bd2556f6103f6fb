"""The work of `eva.clip`: a student with a taught class token and its CLIP teacher's text tower as a CLIP model."""

# D width of the student, E width of the joint space

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vfm.models import ClipModel, build_clip, init_vision_tower, load_clip, read_masked_modelling, save_clip
from vfm.plugin import ClipCheckpoint, Context, Preflight, UserError, VisionCheckpoint
from vfm_eva.stages import EvaClip, EvaPretrain

__all__ = ["check_eva_clip", "clip_of_student", "join_eva_clip"]


def check_eva_clip(config: EvaClip, ctx: Preflight) -> None:
    """Check that the student's class token is taught by that teacher.

    Raises:
        UserError: it is not.
    """
    if encoder := ctx.artifact(config.encoder):
        _class_head(encoder, config.teacher_number)
    elif isinstance(stage := ctx.stage(config.encoder), EvaPretrain):
        taught_by = stage.taught_by
        if config.teacher_number >= len(taught_by) or not taught_by[config.teacher_number].class_weight:
            raise _no_class_head(str(config.encoder), config.teacher_number)


def join_eva_clip(config: EvaClip, ctx: Context) -> ClipCheckpoint:
    """Save the student and the text tower as a CLIP model."""
    encoder, clip = ctx.load(config.encoder), load_clip(ctx.load(config.clip))
    return save_clip(clip_of_student(encoder, clip, config.teacher_number), ctx.directory)


def clip_of_student(encoder: VisionCheckpoint, clip: ClipModel, teacher_number: int = 0) -> ClipModel:
    """Return a CLIP model of a student's encoder, its head of the class token, and its teacher's text tower.

    Args:
        encoder: a student whose class token was taught.
        clip: the teacher.
        teacher_number: place of the teacher among those of the training, from 0.

    Raises:
        UserError: the class token was not taught by this teacher, or open_clip has no such model.
    """
    weight, bias = _class_head(encoder, teacher_number)
    width = clip.config["embed_dim"]
    if len(weight) != width:
        raise UserError(f"{encoder.path}: its class token predicts {len(weight)} channels, {clip.name} has {width}")
    vision_cfg = {
        "timm_model_name": encoder.architecture,
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": encoder.image_size,
    }
    joined = build_clip({**clip.config, "vision_cfg": vision_cfg}, seed=0)
    init_vision_tower(encoder, joined, take_normalization=True)
    module: Any = joined.module
    projection: nn.Linear = module.visual.head.proj
    with torch.no_grad():
        projection.weight.copy_(weight)
        projection.bias.copy_(bias)
    text = {key: value for key, value in clip.module.state_dict().items() if not key.startswith("visual.")}
    module.load_state_dict({**module.state_dict(), **text})
    return joined


def _class_head(encoder: VisionCheckpoint, teacher_number: int) -> tuple[Tensor, Tensor]:
    """Return weight, (E, D), and bias, (E,), of the head that predicts a teacher's feature of the image."""
    added, name = read_masked_modelling(encoder.path), f"class_heads.{teacher_number}"
    if f"{name}.weight" not in added:
        raise _no_class_head(str(encoder.path), teacher_number)
    return added[f"{name}.weight"], added[f"{name}.bias"]


def _no_class_head(encoder: str, teacher_number: int) -> UserError:
    return UserError(
        f"{encoder}: its class token is not taught by teacher {teacher_number}; set class_weight in `teachers` of"
        " eva.pretrain, and teacher_number to the teacher's place there, from 0"
    )
