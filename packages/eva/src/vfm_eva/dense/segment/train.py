"""Build the segmenter and its samples for `eva.segment`, and train."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vfm.data import TrainingData
from vfm.data.annotated import AnnotatedSource
from vfm.models import known_checkpoint
from vfm.plugin import AnnotatedImages, Context, DenseCheckpoint, Preflight, UserError, check_dense_evaluations
from vfm.train import fit, is_main
from vfm_eva.dense.segment.model import PREDICTED, HeadRecord, build_encoder, build_segmenter, load_encoder
from vfm_eva.dense.segment.samples import MakeSegments, count_crowded, most_segments
from vfm_eva.dense.segment.stages import EvaSegment, QueriesSegmentation
from vfm_eva.dense.segment.task import SegmentTask
from vfm_eva.finetune.classifier import check_trained

NEEDED = {"semantic": "semantic", "instance": "masks", "panoptic": "panoptic"}


def check_eva_segment(config: EvaSegment, ctx: Preflight) -> None:
    """Check that the data have the task's labels, and that a known encoder takes the head.

    Raises:
        UserError: The first mistake.
    """
    config.trained.check()
    data = ctx.artifact(config.data)
    if data:
        check_data(config, data)
    names = data.class_names if data else None
    check_dense_evaluations(config, PREDICTED[config.task], names, ctx.artifact)
    num_classes = len(data.class_names) if data else 2  # any number does for shapes
    with known_checkpoint(ctx, config.encoder) as planned, torch.device("meta"):
        checkpoint = ctx.artifact(config.encoder) or planned
        if checkpoint:
            model = build_segmenter(config, build_encoder(config, checkpoint), num_classes)
            check_trained(config.trained, model.encoder.visual)


def check_data(config: EvaSegment, data: AnnotatedImages) -> None:
    """Check that a dataset has images, and the labels of the task.

    Raises:
        UserError: If it does not.
    """
    if not data.has_images:
        raise UserError(f"{config.data}: made with images: false, so there is nothing to train on")
    if NEEDED[config.task] not in data.labels:
        raise UserError(
            f"{config.data}: task {config.task} needs {NEEDED[config.task]}, the dataset has {', '.join(data.labels)}"
        )


def segment_eva(config: EvaSegment, ctx: Context) -> DenseCheckpoint:
    """Train a segmenter, and export it."""
    data = ctx.load(config.data)
    check_data(config, data)
    check_dense_evaluations(config, PREDICTED[config.task], data.class_names, ctx.load)
    encoder, report = load_encoder(config, ctx.load(config.encoder))
    if is_main():
        ctx.log(f"weights of the encoder: {report.summary}")
        ctx.panel(report.panel("Weights of the encoder"))
    if config.grad_checkpointing:
        encoder.set_grad_checkpointing()  # type: ignore[operator]
    model = build_segmenter(config, encoder, len(data.class_names))
    record = HeadRecord(config.head.model_dump(mode="json"), config.task, config.is_frozen, data.things)
    task = SegmentTask(
        model,
        record,
        data.class_names,
        num_steps=config.num_steps,
        trained=config.trained,
        encoder_rate=encoder_rate(config),
        seed=config.seed,
    )
    source = AnnotatedSource(data)
    make = make_segments(config, source, task.preprocess.image_size)
    if isinstance(config.head, QueriesSegmentation) and is_main():
        _report_crowded(config, config.head, source, ctx)
    fit(task, TrainingData.of(config, source.source, make), config, ctx)
    return task.export(ctx.directory)


def encoder_rate(config: EvaSegment) -> Callable[[int], float] | None:
    """Build the encoder's learning rate by step, before layer decay, or None without a separate warm-up.

    The rate is 0 while the head warms up. Then the schedule starts for the encoder, over the remaining steps.

    Source: Kerssies et al. 2025, EoMT (arXiv:2503.19108), whose code waits 500 steps and warms up over 1,000.
    """
    if config.encoder_warmup_steps is None:
        return None
    wait = config.schedule.warmup_steps
    # EoMT trains the head alone first. The encoder's schedule then takes the remaining steps.
    later = config.schedule.model_copy(update={"warmup_steps": config.encoder_warmup_steps})
    later_rate: Callable[[int], float] = later.build(config.lr, config.num_steps - wait)

    def rate(step: int) -> float:
        if step >= wait:
            return later_rate(step - wait)
        return 0.0

    return rate


def make_segments(config: EvaSegment, source: AnnotatedSource, side: int) -> MakeSegments:
    """Create the loader of training samples.

    Args:
        config: Settings of the training.
        source: Annotated images.
        side: Side of the crops in pixels.
    """
    most, with_masks = 0, False
    if isinstance(config.head, QueriesSegmentation):
        most = min(config.head.num_queries, most_segments(source, config.task))
        with_masks = True
    return MakeSegments(source, config.task, side, config.augmentation, most, with_masks=with_masks)


def _report_crowded(config: EvaSegment, head: QueriesSegmentation, source: AnnotatedSource, ctx: Context) -> None:
    """Warn about images with more segments than queries, whose smallest segments are left out of a crop."""
    if config.task == "semantic" and len(source.dataset.class_names) > head.num_queries:
        ctx.log(
            f"a crop with more than {head.num_queries} classes, one for each query, loses those with the fewest pixels"
        )
    crowded = count_crowded(source, config.task, head.num_queries)
    if crowded:
        ctx.warn(
            f"{config.data}: {crowded} of {len(source)} images have more segments than the {head.num_queries} queries;"
            " the smallest ones of a crop are left out (head.num_queries)"
        )
