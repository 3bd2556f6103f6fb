"""The costs of `eva.segment` and `eva.detect` before they run."""

from __future__ import annotations

import numpy as np
import torch

from vfm.data.annotated import AnnotatedSource
from vfm.plugin import ClipCheckpoint, Cost, Preflight, VisionCheckpoint
from vfm.train import Ragged
from vfm_eva.detect.checkpoint import build_detector
from vfm_eva.detect.samples import DetectionInputs
from vfm_eva.detect.task import DetectTask
from vfm_eva.detect.train import build_visual
from vfm_eva.estimate_labeled import Planned, estimate_with_encoder, images, known_classes, zeros
from vfm_eva.segment.model import HeadRecord, build_encoder, build_segmenter
from vfm_eva.segment.samples import SegmentInputs, most_segments
from vfm_eva.segment.task import SegmentTask
from vfm_eva.stages_detect import EvaDetect
from vfm_eva.stages_segment import EvaSegment, QueriesSegmentation

OBJECTS = 8  # in an image, as long as the data are not known
POSITIVE = 0.25  # largest share of a detector's regions that are trained as objects


def eva_segment_cost(config: EvaSegment, ctx: Preflight) -> Cost:
    """Return the cost of a training with the largest possible number of segments in each crop.

    It is unknown until the encoder is known.
    """
    data, names, encoder = ctx.artifact(config.data), known_classes(ctx, config.data), ctx.artifact(config.encoder)
    queries = 0
    if isinstance(config.head, QueriesSegmentation):
        most = most_segments(AnnotatedSource(data), config.task) if data else OBJECTS
        queries = min(config.head.num_queries, most)

    def plan(encoder: VisionCheckpoint | ClipCheckpoint) -> Planned:
        visual = build_encoder(config, encoder)
        if config.grad_checkpointing:
            visual.set_grad_checkpointing()  # type: ignore[operator]
        model = build_segmenter(config, visual, len(names))
        record = HeadRecord(config.head.model_dump(mode="json"), config.task, config.frozen, [True] * len(names))
        task = SegmentTask(model, record, names, num_steps=config.num_steps, layer_decay=config.layer_decay)
        side = task.preprocess.image_size

        def inputs(number: int) -> SegmentInputs:
            labels = _ragged(number, queries, dtype=torch.int64)
            masks = _ragged(number, queries, side, side // 8, dtype=torch.uint8)
            semantic = torch.zeros(number, side, side, dtype=torch.int16) if config.task == "semantic" else None
            return SegmentInputs(images(number, side), labels, masks, semantic)

        return task, inputs

    return estimate_with_encoder(config, ctx, plan, encoder if isinstance(encoder, ClipCheckpoint) else None)


def eva_detect_cost(config: EvaDetect, ctx: Preflight) -> Cost:
    """Return the cost of a training with the mean number of objects in each crop.

    It is unknown until the encoder, or the detector to start from, is known.
    """
    data, names = ctx.artifact(config.data), known_classes(ctx, config.data)
    objects = -(-data.num_objects // data.num_samples) if data else OBJECTS
    start = ctx.artifact(config.start) if config.start else None
    if config.start and not start:
        return Cost(unknown=(f"the detector {config.start}",))
    detector, federated = config.detector, config.detector.cascade.loss == "federated"

    def plan(encoder: VisionCheckpoint) -> Planned:
        visual = build_visual(config, encoder.path)
        if config.grad_checkpointing:
            visual.set_grad_checkpointing()  # type: ignore[operator]
        task = DetectTask(
            build_detector(visual, len(names), detector),
            names,
            class_images=np.ones(len(names), np.int64) if federated else None,
            layer_decay=config.layer_decay,
            decay_vectors=config.decay_vectors,
            freeze_patch_embed=config.freeze_patch_embed,
        )
        side = detector.image_size

        def inputs(number: int) -> DetectionInputs:
            labels = _ragged(number, objects, dtype=torch.int64)
            boxes = _ragged(number, objects, 4, dtype=torch.float32)
            masks = _ragged(number, objects, side, side, dtype=torch.bool) if detector.masks else None
            return DetectionInputs(images(number, side), zeros(number, 2), labels, boxes, masks)

        return task, inputs

    own = VisionCheckpoint.load(start.path / start.encoder, verify=False) if start else None
    return estimate_with_encoder(config, ctx, plan, own, selected=POSITIVE)


def _ragged(number: int, *shape: int, dtype: torch.dtype) -> Ragged:
    """Return tensors of one shape, one for each of `number` samples."""
    return Ragged(tuple(torch.zeros(*shape, dtype=dtype) for _ in range(number)))
