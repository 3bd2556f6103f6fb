"""The work of `eva.pretrain`: student, teacher or stored targets, masks, the training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vfm.data import CachedTensors, Make, TrainingData, open_dataset
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
from vfm.plugin import Context, ImageDataset, VisionCheckpoint
from vfm.train import fit, is_main, resolve_device, show_panels
from vfm_eva.pretrain.alarm import PretrainAlarm
from vfm_eva.pretrain.decoder import MaskDecoder
from vfm_eva.pretrain.held_out_checks import check_held_out
from vfm_eva.pretrain.masks import MaskedData, Masks
from vfm_eva.pretrain.objective import Objective
from vfm_eva.pretrain.panels import cosine_sheet
from vfm_eva.pretrain.stages import EvaPretrain
from vfm_eva.pretrain.student import check_class_token, student_grid
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.pretrain.weight_init import init_weights
from vfm_eva.targets.images import EvaViews, MakeViews, MakeWithTargets, crop_transform
from vfm_eva.targets.phi_s import PhiS
from vfm_eva.targets.target_checks import check_data, check_grid, check_same_crops
from vfm_eva.targets.teacher import PatchTarget, load_encoder, load_targets

_DROPPED = {"head.": "the encoder's own head", "attn_pool.": "the student pools by the mean over its patches"}
_NEW = {"fc_norm.": "new, after the mean over patches"}


def pretrain_eva(config: EvaPretrain, ctx: Context) -> VisionCheckpoint:
    """Train the student, and leave panels of its predictions, its patches and its attention."""
    data = ctx.load(config.data)
    stored = any(entry.targets for entry in config.taught_by)
    task, make = task_from_cache(config, ctx, data) if stored else task_from_teacher(config, ctx)
    check_held_out(config, ctx.load)
    source, masks = open_dataset(data), Masks(config.mask, task.grid, task.num_masked)
    batches = MaskedData(TrainingData.of(config, source, make), masks)
    fit_statistics(task, batches, config, ctx)  # before weights of `start`, whose heads are standardised by it
    init_weights(task, config.student.init, config.seed)
    if config.start:
        start_from(task, ctx.load(config.start), ctx)
    fit(task, batches, config, with_alarms(task, config, ctx))
    made = task.export(ctx.directory)
    show_panels(
        ctx,
        *([lambda: cosine_sheet(task, source, make, masks, ctx.directory)] if task.teacher.is_cosine else []),
        lambda: pca_sheet(task.encoder(), source, ctx.directory),
    )
    return made


def with_alarms(task: EvaTask, config: EvaPretrain, ctx: Context) -> Context:
    """Return the context whose listeners also get the warnings about each loss that is a cosine."""
    for objective in task.objectives:
        if objective.is_cosine:
            name = "" if task.has_one_loss else objective.name
            alarm = PretrainAlarm(
                ctx, warmup_steps=config.schedule.warmup_steps, num_steps=config.num_steps, teacher=name
            )
            ctx = replace(ctx, send=alarm)
    return ctx


def task_from_teacher(config: EvaPretrain, ctx: Context) -> tuple[EvaTask, Make[EvaViews]]:
    """Return the task with the teachers of the stage, and what makes its inputs."""
    student, bf16 = build_student(config, _start(config, ctx)), teacher_in_bf16(config)
    teachers = [
        entry.target.build(student, load_encoder(ctx.load(entry.teacher)) if entry.teacher else None, bf16=bf16)
        for entry in config.taught_by
    ]
    task = build_task(config, student, *teachers)
    crop_scale, flip = config.augmentation.crop_scale, config.augmentation.flip
    preprocesses = [task.preprocess, *(teacher.preprocess or task.preprocess for teacher in teachers)]
    own, first, *others = (crop_transform(crop_scale, flip, preprocess) for preprocess in preprocesses)
    return task, MakeViews(own, first, tuple(others))


def teacher_in_bf16(config: EvaPretrain) -> bool | None:
    """Return whether the teacher computes in bf16; None: as the student does."""
    if config.teacher_precision == "auto":
        return True if resolve_device(config.runtime).type == "cuda" else None
    return config.teacher_precision == "bf16"


def task_from_cache(config: EvaPretrain, ctx: Context, data: ImageDataset) -> tuple[EvaTask, Make[EvaViews]]:
    """Return the task with the stored targets of the stage, and what makes its inputs."""
    caches = [ctx.load(entry.targets) for entry in config.taught_by if entry.targets]
    task = build_task(config, build_student(config, _start(config, ctx)), *map(load_targets, caches))
    for cache in caches:
        check_grid(cache.shape[:-1], task.grid)
        check_data(cache, data)
    check_same_crops(caches)
    make = MakeViews(crop_transform(caches[0].crop_scale, caches[0].flip, task.preprocess))
    first, *others = map(CachedTensors, caches)
    return task, MakeWithTargets(make, first, config.global_batch_size, tuple(others))


def build_task(config: EvaPretrain, student: nn.Module, *teachers: PatchTarget) -> EvaTask:
    """Return the task of a student and its teachers, one for each of `config.taught_by`."""
    names = [_short_name(entry.source) for entry in config.taught_by]
    objectives = [
        Objective(
            teacher,
            entry.weight,
            entry.class_weight,
            PhiS.identity(teacher.width) if entry.loss == "phi_s" else None,
            name=name if names.count(name) == 1 else f"{name}_{number}",
        )
        for number, (entry, teacher, name) in enumerate(zip(config.taught_by, teachers, names, strict=True))
    ]
    return EvaTask(
        student,
        objectives,
        num_masked=num_masked(config, student),
        decoder=_decoder(config, student) if config.encode == "visible" else None,
        patch_embed_grad=config.student.patch_embed_grad,
        seed=config.seed,
    )


def _short_name(ref: str) -> str:
    """Return the name of a teacher in the curves, the same for all seeds of a recipe."""
    return ref.rstrip("/").rpartition("/")[2].partition("@")[0]


def fit_statistics(task: EvaTask, data: MaskedData, config: EvaPretrain, ctx: Context) -> None:
    """Fit statistics of targets to the first images of the training, or load what an interrupted run has fitted."""
    for number, (objective, entry) in enumerate(zip(task.objectives, config.taught_by, strict=True)):
        if objective.statistics is None:
            continue
        file = ctx.work / f"statistics_{number}.safetensors"
        if file.is_file():
            objective.statistics.load_state_dict(objective.statistics.load(file).state_dict())
            continue
        num_steps = -(-entry.statistics_images // config.global_batch_size)
        fitted = objective.statistics.fitted(_first_features(task, number, data, config, num_steps))
        objective.statistics.load_state_dict(fitted.state_dict())
        if is_main():
            fitted.save(file)


def _first_features(
    task: EvaTask, number: int, data: MaskedData, config: EvaPretrain, num_steps: int
) -> Iterator[Tensor]:
    """Yield one teacher's features of the images of the first steps, (B, N, T)."""
    device, teacher = resolve_device(config.runtime), task.objectives[number].teacher
    teacher.module.to(device)
    batch_size = config.micro_batch_size or config.global_batch_size
    for step in data.steps(0, min(num_steps, config.num_steps), micro_batch_size=batch_size):
        for inputs in (batch.to(device).inputs for batch in step if batch):
            yield teacher.features_to_fit(inputs.of_teacher(number), task.grid)


def _decoder(config: EvaPretrain, student: Any) -> MaskDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 2)  # `seed` and `seed + 1` draw the student, the head and the mask token
        return MaskDecoder(
            student.num_features, student_grid(student), student.num_prefix_tokens, **config.decoder.model_dump()
        )


def build_student(config: EvaPretrain, start: VisionCheckpoint | None = None) -> nn.Module:
    """Return the student with timm's initial weights, also of the architecture of `start`.

    It pools by the mean over its patches unless the configuration of its model says otherwise: no loss trains a pooling
    head, and the class token only if a teacher teaches it, which then is the default.
    """
    mapping = _mapping(f"local-dir:{start.path}" if start else config.model)

    def build(global_pool: str) -> nn.Module:
        return build_vision(
            {"global_pool": global_pool, **mapping},
            image_size=config.image_size or (start.image_size if start else None),
            num_classes=0,
            seed=config.seed,
            drop_path_rate=config.student.drop_path,
        )

    teaches_class_token = any(entry.class_weight for entry in config.taught_by)
    if teaches_class_token:
        with torch.device("meta"):  # a student without a class token cannot be built to pool by it
            check_class_token(build("avg"))
    model = build("token" if teaches_class_token else "avg")
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
