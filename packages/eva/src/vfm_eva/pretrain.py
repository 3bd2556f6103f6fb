"""The work of `eva.pretrain`: student, teacher or stored targets, masks, the training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vfm.data import CachedTensors, open_dataset
from vfm.eval import pca_sheet
from vfm.models import (
    VISION_WEIGHTS_FILE,
    KeyReport,
    TransferRules,
    build_vision,
    grid_size,
    load_state_dict,
    read_masked_modelling,
    transfer_weights,
)
from vfm.plugin import Context, ImageDataset, Preflight, Ref, SampleCache, UserError, VisionCheckpoint
from vfm.train import Make, TrainingData, fit, is_main, resolve_device, show_panels
from vfm_eva.alarm import PretrainAlarm
from vfm_eva.decoder import MaskDecoder
from vfm_eva.images import EvaInputs, EvaViews, MakeViews, MakeWithTargets, crop_transform
from vfm_eva.masks import MaskedData, Masks
from vfm_eva.panels import cosine_sheet
from vfm_eva.pca import Pca
from vfm_eva.stages import EvaPretrain, EvaTargets
from vfm_eva.student import student_grid
from vfm_eva.task import EvaTask
from vfm_eva.teacher import StoredTargets, Teacher, load_teacher
from vfm_eva.weight_init import check_init, init_weights

_DROPPED = {"head.": "the encoder's own head", "attn_pool.": "the student pools by the mean over its patches"}
_NEW = {"fc_norm.": "new, after the mean over patches"}


def check_eva_pretrain(config: EvaPretrain, ctx: Preflight) -> None:
    """Check that the student can be masked, that a known teacher has the target, and that known targets fit.

    Raises:
        UserError: the first mistake.
    """
    start = ctx.artifact(config.start) if config.start else None
    if config.start and not start:  # the encoder is only known after its stage has run
        return
    with torch.device("meta"):  # shapes without weights, whatever the model's size
        student = build_student(config, start)
    grid = student_grid(student, num_masked(config, student), visible_only=config.encode == "visible")
    check_init(student, config.student.init)
    if config.targets:
        _check_targets(config, ctx, config.targets, grid)
    elif config.teacher and (checkpoint := ctx.artifact(config.teacher)):
        teacher = load_teacher(checkpoint, config.target)
        task = build_task(config, student, teacher).to("meta")
        own, other = (
            torch.zeros(1, 3, size, size, dtype=torch.uint8, device="meta")
            for size in (task.preprocess.image_size, teacher.preprocess.image_size)
        )
        task(EvaInputs(own, torch.zeros(1, grid[0] * grid[1], dtype=torch.bool, device="meta"), other))


def pretrain_eva(config: EvaPretrain, ctx: Context) -> VisionCheckpoint:
    """Train the student, and leave panels of its predictions, its patches and its attention."""
    data = ctx.load(config.data)
    task, make = task_from_cache(config, ctx, data) if config.targets else task_from_teacher(config, ctx)
    init_weights(task, config.student.init, config.seed)
    if config.start:
        start_from(task, ctx.load(config.start), ctx)
    source, masks = open_dataset(data), Masks(config.mask, task.grid, task.num_masked)
    batches = MaskedData(TrainingData.of(config, source, make), masks)
    alarm = PretrainAlarm(ctx, warmup_steps=config.schedule.warmup_steps, num_steps=config.num_steps)
    fit(task, batches, config, replace(ctx, send=alarm))
    made = task.export(ctx.directory)
    show_panels(
        ctx,
        lambda: cosine_sheet(task, source, make, masks, ctx.directory),
        lambda: pca_sheet(task.encoder(), source, ctx.directory),
    )
    return made


def task_from_teacher(config: EvaPretrain, ctx: Context) -> tuple[EvaTask, Make[EvaViews]]:
    """Return the task with the teacher of the stage, and what makes its inputs."""
    assert config.teacher
    teacher = load_teacher(ctx.load(config.teacher), config.target, bf16=teacher_in_bf16(config))
    task = build_task(config, build_student(config, _start(config, ctx)), teacher)
    crop_scale, flip = config.augmentation.crop_scale, config.augmentation.flip
    return task, MakeViews(*(crop_transform(crop_scale, flip, model.preprocess) for model in (task, teacher)))


def teacher_in_bf16(config: EvaPretrain) -> bool | None:
    """Return whether the teacher computes in bf16; None: as the student does."""
    if config.teacher_precision == "auto":
        return True if resolve_device(config.runtime).type == "cuda" else None
    return config.teacher_precision == "bf16"


def task_from_cache(config: EvaPretrain, ctx: Context, data: ImageDataset) -> tuple[EvaTask, Make[EvaViews]]:
    """Return the task with the stored targets of the stage, and what makes its inputs."""
    assert config.targets
    cache = ctx.load(config.targets)
    pca = Pca.load(cache.path) if cache.basis else None
    student = build_student(config, _start(config, ctx))
    task = build_task(config, student, StoredTargets(len(pca.mean) if pca else cache.shape[-1], pca))
    _check_grid(cache.shape[:-1], task.grid)
    _check_data(cache, data)
    make = MakeViews(crop_transform(cache.crop_scale, cache.flip, task.preprocess))
    return task, MakeWithTargets(make, CachedTensors(cache), config.global_batch_size)


def build_task(config: EvaPretrain, student: nn.Module, teacher: Teacher | StoredTargets) -> EvaTask:
    """Return the task of a student and a teacher."""
    return EvaTask(
        student,
        teacher,
        num_masked=num_masked(config, student),
        decoder=_decoder(config, student) if config.encode == "visible" else None,
        patch_embed_grad=config.student.patch_embed_grad,
        seed=config.seed,
    )


def _decoder(config: EvaPretrain, student: Any) -> MaskDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 2)  # `seed` and `seed + 1` draw the student, the head and the mask token
        return MaskDecoder(
            student.num_features, student_grid(student), student.num_prefix_tokens, **config.decoder.model_dump()
        )


def build_student(config: EvaPretrain, start: VisionCheckpoint | None = None) -> nn.Module:
    """Return the student with timm's initial weights, also of the architecture of `start`.

    It pools by the mean over its patches unless the configuration of its model says otherwise: no loss trains its class
    token or a pooling head.
    """
    model = build_vision(
        {"global_pool": "avg", **_mapping(f"local-dir:{start.path}" if start else config.model)},
        image_size=config.image_size or (start.image_size if start else None),
        num_classes=0,
        seed=config.seed,
        drop_path_rate=config.student.drop_path,
    )
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    return model


def start_from(task: EvaTask, start: VisionCheckpoint, ctx: Context) -> None:
    """Load the encoder of `start` into the student, and its mask token, head and decoder if it has those of this task.

    Raises:
        UserError: a key is missing, unknown or of another shape.
    """
    weights, report = load_state_dict(start.path / VISION_WEIGHTS_FILE), KeyReport()
    rules = TransferRules(_DROPPED, _NEW, where="start", target="the student")
    transfer_weights(weights, task.student, rules, report)
    fits = task.load_masked_modelling(read_masked_modelling(start.path))
    if is_main():
        ctx.log(f"weights of start: {report.summary}; {'its' if fits else 'new'} mask token and head")
        ctx.panel(report.panel("Weights of start"))


def _start(config: EvaPretrain, ctx: Context) -> VisionCheckpoint | None:
    return ctx.load(config.start) if config.start else None


def _mapping(model: str | dict[str, Any]) -> dict[str, Any]:
    return {"architecture": model} if isinstance(model, str) else model


def num_masked(config: EvaPretrain, student: nn.Module) -> int:
    """Return the number of patches that a mask hides."""
    rows, columns = grid_size(student)
    return round(config.mask.ratio * rows * columns)


def _check_targets(config: EvaPretrain, ctx: Preflight, targets: Ref[SampleCache], grid: tuple[int, int]) -> None:
    """Check targets by their facts if they exist, else by the configuration of the stage that makes them."""
    cache, data, maker = ctx.artifact(targets), ctx.artifact(config.data), ctx.stage(targets)
    if cache:
        _check_grid(cache.shape[:-1], grid)
        if data:
            _check_data(cache, data)
    elif isinstance(maker, EvaTargets):
        _check_grid(maker.grid, grid)
        if maker.data != config.data:
            raise UserError(f"targets {targets!r} are made from {maker.data!r}, expected data {config.data!r}")


def _check_grid(found: tuple[int, ...], grid: tuple[int, int]) -> None:
    if found != grid:
        sides = " x ".join(map(str, found))
        raise UserError(
            f"expected targets for {grid[0]} x {grid[1]} patches, the student's; got {sides}; set grid: {list(grid)} in"
            " the stage that makes the targets"
        )


def _check_data(cache: SampleCache, data: ImageDataset) -> None:
    """Check that the cache's rows belong to this dataset."""
    made_from = cache.linked(cache.data).resolve()
    if made_from != data.path.resolve():
        raise UserError(f"expected targets made from data, {data.path.resolve()}; got targets made from {made_from}")
