"""The work of `eva.pretrain`: build student, teachers or stored targets, and masks, and train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vfm.data import CachedTensors, Make, TrainingData, open_head, open_samples
from vfm.eval import pca_sheet
from vfm.models import (
    VISION_WEIGHTS_FILE,
    KeyReport,
    Preprocess,
    TransferRules,
    load_state_dict,
    read_masked_modelling,
    transfer_weights,
)
from vfm.plugin import Context, ImageDataset, UserError, VisionCheckpoint
from vfm.train import Data, exporting, fit, is_main, resolve_device, show_panels, weights_from_first
from vfm_eva.pretrain.alarm import PretrainAlarm
from vfm_eva.pretrain.building import build_student, left_out, num_masked
from vfm_eva.pretrain.held_out_checks import check_held_out
from vfm_eva.pretrain.masks import MaskedData, Masks
from vfm_eva.pretrain.naflex.student import check_row_student
from vfm_eva.pretrain.objective import Objective
from vfm_eva.pretrain.panels import cosine_sheet
from vfm_eva.pretrain.row_task import RowTask, row_data
from vfm_eva.pretrain.stages import EvaPretrain
from vfm_eva.pretrain.students.decoder import MaskDecoder
from vfm_eva.pretrain.students.masking import student_grid
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.pretrain.weight_init import init_weights
from vfm_eva.targets.images import EvaViews, MakeSizes, MakeViews, MakeWithTargets, crop_transform
from vfm_eva.targets.patch_target import PatchTarget
from vfm_eva.targets.phi_s import GlobalScale, PhiS
from vfm_eva.targets.stored import load_targets
from vfm_eva.targets.target_checks import check_data, check_grid, check_same_crops
from vfm_eva.targets.teacher import load_encoder

STANDARDISED: dict[str, type[PhiS]] = {"phi_s": PhiS, "variance": GlobalScale}  # by loss
_NEW = {"fc_norm.": "new, after the mean over patches"}


def pretrain_eva(config: EvaPretrain, ctx: Context) -> VisionCheckpoint:
    """Train the student, and add report panels of its predictions, patches and attention."""
    data = ctx.load(config.data)
    if config.stored_targets:
        task, make = task_from_cache(config, ctx, data)
    else:
        task, make = task_from_teacher(config, ctx)
    check_held_out(config, ctx.load)
    masks = Masks(config.mask, task.grid, task.num_masked)
    samples = open_samples(data, config, ctx)
    batches: Data[Any] = MaskedData(TrainingData.of(config, samples, make), masks)
    if isinstance(task, RowTask):
        batches = row_data(config, task, samples)
    fit_statistics(task, batches, config, ctx)  # before `start`, whose heads are standardised with them
    with weights_from_first(config.runtime):
        init_weights(task, config.student.init, config.seed)
        if config.start:
            start_from(task, ctx.load(config.start), ctx)
    fit(task, batches, config, with_alarms(task, config, ctx))
    with exporting(config.runtime, ctx):
        checkpoint = task.export(ctx.directory)
    source = open_head(data)
    panels = [lambda: pca_sheet(task.encoder(), source, ctx.directory)] if task.has_patches else []
    # Other targets have no cosine that could be drawn for each patch.
    if task.teacher.is_cosine:
        views = make.sizes[-1] if isinstance(make, MakeSizes) else make  # the size of the masks
        panels.insert(0, lambda: cosine_sheet(task, source, views, masks, ctx.directory))
    show_panels(ctx, *panels)
    return checkpoint


def with_alarms(task: EvaTask, config: EvaPretrain, ctx: Context) -> Context:
    """Add an alarm to the context for each loss that is a cosine."""
    for objective in task.objectives:
        if objective.is_cosine:
            name = "" if task.has_one_loss else objective.name
            alarm = PretrainAlarm(
                ctx, warmup_steps=config.schedule.warmup_steps, num_steps=config.num_steps, teacher=name
            )
            ctx = replace(ctx, send=alarm)
    return ctx


def task_from_teacher(config: EvaPretrain, ctx: Context) -> tuple[EvaTask, Make[EvaViews]]:
    """Build the task with the teachers of the stage, and the loader of its inputs."""
    with weights_from_first(config.runtime):
        student = build_student(config, _start(config, ctx))
    if config.naflex:  # again, as `start` may not have existed when the recipe was checked
        check_row_student(student, max(config.naflex.seq_lens), config.naflex.row_tokens)
    bf16 = teacher_in_bf16(config)
    teachers = []
    for entry in config.taught_by:
        encoder = load_encoder(ctx.load(entry.teacher)) if entry.teacher else None
        teachers.append(entry.target.build(student, encoder, bf16=bf16))
    with weights_from_first(config.runtime):
        task = build_task(config, student, *teachers)
    sizes = []
    for preprocesses in preprocesses_by_size(config, task, teachers):
        crops = [
            crop_transform(config.augmentation.crop_scale, config.augmentation.flip, each) for each in preprocesses
        ]
        sizes.append(MakeViews(crops[0], crops[1], tuple(crops[2:])))
    return task, sizes[0] if len(sizes) == 1 else MakeSizes(tuple(sizes))


def preprocesses_by_size(
    config: EvaPretrain, task: EvaTask, teachers: Sequence[PatchTarget]
) -> Iterator[list[Preprocess]]:
    """Yield the preprocessing of the student and of its teachers, for each size of the student's images.

    Raises:
        UserError: If a size is no multiple of the student's patches, or does not fit a teacher's mosaic.
    """
    own_size = task.preprocess.image_size
    for size in config.image_sizes or [own_size]:
        if task.has_patches and size * task.grid[0] % own_size:
            raise UserError(f"image_sizes: expected multiples of the patch size {own_size // task.grid[0]}, got {size}")
        student = task.preprocess.model_copy(update={"image_size": size})
        yield [student, *(teacher.preprocess_for(student) for teacher in teachers)]


def teacher_in_bf16(config: EvaPretrain) -> bool | None:
    """Decide whether the teacher computes in bf16. None means that it follows the student."""
    if config.teacher_precision == "auto":
        if resolve_device(config.runtime).type == "cuda":
            return True
        return None
    return config.teacher_precision == "bf16"


def task_from_cache(config: EvaPretrain, ctx: Context, data: ImageDataset) -> tuple[EvaTask, Make[EvaViews]]:
    """Build the task with the stored targets of the stage, and the loader of its inputs."""
    caches = list(map(ctx.load, config.stored_targets))
    teachers = list(map(load_targets, caches))
    with weights_from_first(config.runtime):
        task = build_task(config, build_student(config, _start(config, ctx)), *teachers)
    for cache in caches:
        check_grid(cache.shape[:-1], task.grid)
        check_data(cache, data)
    check_same_crops(caches)
    make = MakeViews(crop_transform(caches[0].crop_scale, caches[0].flip, task.preprocess))
    first, *others = map(CachedTensors, caches)
    return task, MakeWithTargets(make, first, config.global_batch_size, tuple(others))


def build_task(config: EvaPretrain, student: nn.Module, *teachers: PatchTarget) -> EvaTask:
    """Build the task for a student and its teachers, one for each entry of `config.taught_by`."""
    names = [_short_name(entry.source) for entry in config.taught_by]
    objectives = []
    for number, (entry, teacher, name) in enumerate(zip(config.taught_by, teachers, names, strict=True)):
        standardised = STANDARDISED.get(entry.loss)
        phi_s = standardised.identity(teacher.width) if standardised else None
        unique_name = name if names.count(name) == 1 else f"{name}_{number}"
        objectives.append(Objective(teacher, entry.weight, entry.class_weight, phi_s, unique_name, entry.gram_weight))
    decoder = _decoder(config, student) if config.encode == "visible" else None
    task_type = RowTask if config.naflex else EvaTask
    return task_type(
        student,
        objectives,
        num_masked=num_masked(config, student),
        is_masked=config.mask.ratio > 0,
        decoder=decoder,
        patch_embed_grad=config.student.patch_embed_grad,
        seed=config.seed,
    )


def _short_name(ref: str) -> str:
    """Shorten a teacher's reference to its name in the curves, which is the same for all seeds of a recipe."""
    return ref.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0]


def fit_statistics(task: EvaTask, data: Data[Any], config: EvaPretrain, ctx: Context) -> None:
    """Fit statistics of targets to the first training images, or load the statistics of an interrupted run."""
    for number, (objective, entry) in enumerate(zip(task.objectives, config.taught_by, strict=True)):
        if objective.statistics is None:
            continue
        file = ctx.work / f"statistics_{number}.safetensors"
        if file.is_file():
            objective.statistics.load_state_dict(objective.statistics.load(file).state_dict())
            continue
        num_steps = -(-entry.statistics_images // config.global_batch_size)  # rounded up
        fitted = objective.statistics.fitted(_first_features(task, number, data, config, num_steps))
        objective.statistics.load_state_dict(fitted.state_dict())
        if is_main():
            fitted.save(file)


def _first_features(
    task: EvaTask, number: int, data: Data[Any], config: EvaPretrain, num_steps: int
) -> Iterator[Tensor]:
    """Yield a teacher's features for the images of the first steps, (B, N, T)."""
    device = resolve_device(config.runtime)
    teacher = task.objectives[number].teacher
    teacher.module.to(device)
    batch_size = config.micro_batch_size or config.global_batch_size
    last_step = min(num_steps, config.num_steps)
    for step in data.steps(0, last_step, rank=0, world_size=1, micro_batch_size=batch_size):
        for batch in filter(None, step):
            yield task.features_to_fit(batch.to(device).inputs, number)


def _decoder(config: EvaPretrain, student: Any) -> MaskDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 2)  # `seed` and `seed + 1` draw the student, the head and the mask token
        return MaskDecoder(
            student.num_features, student_grid(student), student.num_prefix_tokens, **config.decoder.model_dump()
        )


def start_from(task: EvaTask, start: VisionCheckpoint, ctx: Context) -> None:
    """Load the encoder of `start` into the student, and its mask token, head and decoder if they fit this task.

    Raises:
        UserError: If a key is missing, unknown or has another shape.
    """
    file = start.path / VISION_WEIGHTS_FILE
    weights = load_state_dict(file)
    report = KeyReport()
    rules = TransferRules(left_out(task.student, weights), _NEW, where="start", target="the student")
    transfer_weights(weights, task.student, rules, report, file=file)
    fits = task.load_masked_modelling(read_masked_modelling(start.path))
    if is_main():
        whose = "its" if fits else "new"
        ctx.log(f"weights of start: {report.summary}; {whose} mask token and head")
        ctx.panel(report.panel("Weights of start"))


def _start(config: EvaPretrain, ctx: Context) -> VisionCheckpoint | None:
    if not config.start:
        return None
    return ctx.load(config.start)
