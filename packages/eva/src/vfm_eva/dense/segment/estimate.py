"""Cost estimate of `eva.segment`."""

from __future__ import annotations

import torch

from vfm.data.annotated import AnnotatedSource
from vfm.plugin import ClipCheckpoint, Cost, Preflight, VisionCheckpoint
from vfm_eva.dense.segment.model import HeadRecord, build_encoder, build_segmenter
from vfm_eva.dense.segment.samples import SegmentInputs, most_segments
from vfm_eva.dense.segment.stages import EvaSegment, QueriesSegmentation
from vfm_eva.dense.segment.task import SegmentTask
from vfm_eva.finetune.estimate import OBJECTS, Planned, _ragged, estimate_with_encoder, images, known_classes


def eva_segment_cost(config: EvaSegment, ctx: Preflight) -> Cost:
    """Estimate the cost of training a segmenter, with the largest possible number of segments in each crop.

    It is unknown until the encoder exists.
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
        record = HeadRecord(config.head.model_dump(mode="json"), config.task, config.is_frozen, [True] * len(names))
        task = SegmentTask(model, record, names, num_steps=config.num_steps, trained=config.trained)
        side = task.preprocess.image_size

        def inputs(number: int) -> SegmentInputs:
            labels = _ragged(number, queries, dtype=torch.int64)
            masks = _ragged(number, queries, side, side // 8, dtype=torch.uint8)
            if config.task == "semantic":
                semantic = torch.zeros(number, side, side, dtype=torch.int16)
            else:
                semantic = None
            return SegmentInputs(images(number, side), labels, masks, semantic)

        return task, inputs

    clip = encoder if isinstance(encoder, ClipCheckpoint) else None
    return estimate_with_encoder(config, ctx, plan, clip)
