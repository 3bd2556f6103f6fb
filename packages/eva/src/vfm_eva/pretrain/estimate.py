"""Cost estimate of `eva.pretrain` for `vfm plan --estimate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vfm.models import planned_encoder
from vfm.plugin import Cost, Preflight, Ref, SampleCache
from vfm.train import estimate_training
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.pretrain import build_task
from vfm_eva.pretrain.stages import EvaPretrain
from vfm_eva.targets.images import EvaInputs, TeacherInputs
from vfm_eva.targets.parts import EvaTeacher
from vfm_eva.targets.patch_target import PatchTarget
from vfm_eva.targets.stages import EvaTargets
from vfm_eva.targets.stored import StoredTargets
from vfm_eva.targets.teacher import Teacher


def eva_pretrain_cost(config: EvaPretrain, ctx: Preflight) -> Cost:
    """Estimate the cost of a training run. It is unknown until the teachers and the initial encoder exist."""
    start = ctx.artifact(config.start) if config.start else None
    if config.start and not start:
        return Cost(unknown=(f"the encoder of {config.start}",))
    on_cpu = config.runtime.device == "cpu"
    in_bf16 = config.teacher_precision == "bf16" or (config.teacher_precision == "auto" and not on_cpu)
    with torch.device("meta"):
        student = build_student(config, start)
    teachers: list[PatchTarget] = []
    for entry in config.taught_by:
        teacher = _teacher(entry, student, ctx)
        if teacher is None:
            return Cost(unknown=(f"the teacher {entry.source}",))
        teachers.append(teacher)
    with torch.device("meta"):
        task = build_task(config, student, *teachers)
        for teacher in teachers:  # after the task, which finds widths on the meta device, where autocast is missing
            if isinstance(teacher, Teacher) and in_bf16:
                teacher.use_bf16()
    size, grid = task.preprocess.image_size, task.grid

    def teacher_inputs(teacher: PatchTarget, number: int) -> tuple[Tensor | None, Tensor | None]:
        if isinstance(teacher, StoredTargets):
            return None, torch.zeros(number, grid[0] * grid[1], teacher.width, dtype=torch.float16)
        side = teacher.preprocess_for(task.preprocess).image_size
        if side == size:
            return None, None
        return torch.zeros(number, 3, side, side, dtype=torch.uint8), None

    def inputs(number: int) -> EvaInputs:
        images = torch.zeros(number, 3, size, size, dtype=torch.uint8)
        first, *others = (teacher_inputs(teacher, number) for teacher in teachers)
        bool_mask = torch.zeros(number, grid[0] * grid[1], dtype=torch.bool)
        return EvaInputs(images, bool_mask, *first, others=tuple(TeacherInputs(*tensors) for tensors in others))

    if config.naflex:  # rows are estimated as square images of the student's size, as many as a row has room for
        encoder: Any = task.student
        num_tokens = grid[0] * grid[1] + encoder.num_prefix_tokens
        config = config.model_copy(update={"micro_batch_size": max(1, config.naflex.row_tokens // num_tokens)})
    return estimate_training(task, inputs, config)


def _teacher(entry: EvaTeacher, student: nn.Module, ctx: Preflight) -> PatchTarget | None:
    """Build a teacher without weights, or the targets that an earlier stage stores. None if it is not known yet."""
    if entry.targets:
        return _stored(entry.targets, ctx)
    model = planned_encoder(ctx, entry.teacher) if entry.teacher else None
    if model is None and entry.teacher:
        return None
    with torch.device("meta"):
        target: PatchTarget = entry.target.build(student, model)
    return target


def _stored(ref: Ref[SampleCache], ctx: Preflight) -> StoredTargets | None:
    cache = ctx.artifact(ref)
    if cache:
        return StoredTargets(cache.shape[-1], grid=cache.shape[:-1])
    stage = ctx.stage(ref)
    if not isinstance(stage, EvaTargets):
        return None
    model = planned_encoder(ctx, stage.teacher)
    if model is None:
        return None
    return StoredTargets(stage.components or stage.target.build(None, model).width, grid=stage.grid)
