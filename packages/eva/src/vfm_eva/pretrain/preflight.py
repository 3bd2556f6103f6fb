"""Checks of `eva.pretrain` before anything runs, including teachers that do not exist yet."""

from __future__ import annotations

import torch
from torch import nn

from vfm.models import has_patch_tokens
from vfm.plugin import Preflight, Ref, SampleCache, UserError
from vfm_eva.pretrain.building import build_student, num_masked
from vfm_eva.pretrain.held_out_checks import check_held_out
from vfm_eva.pretrain.naflex.student import check_row_student
from vfm_eva.pretrain.pretrain import build_task, preprocesses_by_size
from vfm_eva.pretrain.stages import EvaPretrain
from vfm_eva.pretrain.students.masking import student_grid
from vfm_eva.pretrain.students.networks import freeze_unused
from vfm_eva.pretrain.weight_init import check_init
from vfm_eva.targets.images import EvaInputs, TeacherInputs
from vfm_eva.targets.patch_target import PatchTarget
from vfm_eva.targets.stages import EvaTargets
from vfm_eva.targets.target_checks import check_data, check_grid, check_same_crops, check_teacher
from vfm_eva.targets.teacher import load_encoder


def check_eva_pretrain(config: EvaPretrain, ctx: Preflight) -> None:
    """Check that the student can be masked, that known teachers have the target, and that targets and evaluations fit.

    Raises:
        UserError: The first mistake.
    """
    for entry in config.taught_by:
        if entry.teacher:
            check_teacher(entry.teacher, entry.target, ctx)
    check_held_out(config, ctx.artifact)
    start = ctx.artifact(config.start) if config.start else None
    if config.start and not start:  # the encoder exists only after its stage has run
        return
    with torch.device("meta"):  # shapes without weights, whatever the model's size
        student = build_student(config, start)
    grid = _grid(config, student)
    check_init(student, config.student.init)
    if config.naflex:
        check_row_student(student, max(config.naflex.seq_lens), config.naflex.row_tokens)
    for ref in config.stored_targets:
        _check_targets(config, ctx, ref, grid)
    _check_crops(config.stored_targets, ctx)
    # Stored targets say nothing about a teacher's widths until they exist, and their checks are done.
    if config.stored_targets:
        return
    checkpoints = []
    for entry in config.taught_by:
        checkpoint = ctx.artifact(entry.teacher) if entry.teacher else None
        if entry.target.needs_teacher and not checkpoint:
            return
        checkpoints.append(checkpoint)
    teachers = []
    for entry, checkpoint in zip(config.taught_by, checkpoints, strict=True):
        encoder = load_encoder(checkpoint) if checkpoint else None
        teachers.append(entry.target.build(student, encoder))
    _run_once(config, student, teachers)


def _grid(config: EvaPretrain, student: nn.Module) -> tuple[int, int] | None:
    """Check the student's patches, and return their rows and columns. None: its feature map takes any grid."""
    is_masked = config.mask.ratio > 0
    if not has_patch_tokens(student) and not is_masked:
        freeze_unused(student, with_image=config.teaches_class_token)  # finds its map
        return None
    visible_only = config.encode == "visible"
    return student_grid(student, num_masked(config, student), visible_only=visible_only, is_masked=is_masked)


def _run_once(config: EvaPretrain, student: nn.Module, teachers: list[PatchTarget]) -> None:
    """Run the task once on the meta device, which exposes every mismatch of widths."""
    task = build_task(config, student, *teachers).to("meta").eval()  # a batch norm cannot train on one image
    bool_mask = torch.zeros(1, task.grid[0] * task.grid[1], dtype=torch.bool, device="meta")
    for preprocesses in preprocesses_by_size(config, task, teachers):
        images = []
        for preprocess in preprocesses:
            side = preprocess.image_size
            images.append(torch.zeros(1, 3, side, side, dtype=torch.uint8, device="meta"))
        student_images, first, *others = images
        task(EvaInputs(student_images, bool_mask, first, others=tuple(map(TeacherInputs, others))))


def _check_targets(
    config: EvaPretrain, ctx: Preflight, targets: Ref[SampleCache], grid: tuple[int, int] | None
) -> None:
    """Check stored targets if they exist, otherwise the configuration of the stage that makes them."""
    cache = ctx.artifact(targets)
    data = ctx.artifact(config.data)
    maker = ctx.stage(targets)
    if cache:
        if grid:
            check_grid(cache.shape[:-1], grid)
        if data:
            check_data(cache, data)
    elif isinstance(maker, EvaTargets):
        if grid:
            check_grid(maker.grid, grid)
        if maker.data != config.data:
            raise UserError(f"targets {targets!r} are made from {maker.data!r}, expected data {config.data!r}")


def _check_crops(targets: list[Ref[SampleCache]], ctx: Preflight) -> None:
    """Check that all targets belong to the same crops, if all exist or if their stages are in this recipe."""
    caches = []
    makers = []
    for ref in targets:
        cache = ctx.artifact(ref)
        if cache:
            caches.append(cache)
        stage = ctx.stage(ref)
        if isinstance(stage, EvaTargets):
            makers.append(stage)
    if len(caches) == len(targets) > 1:
        check_same_crops(caches)
    for maker in makers[1:]:
        for name in ("augmentation", "seed", "num_crops"):
            if getattr(maker, name) != getattr(makers[0], name):
                raise UserError(
                    f"targets of several teachers must have the same crops: set the {name} of {maker.name!r} to that of"
                    f" {makers[0].name!r}"
                )
