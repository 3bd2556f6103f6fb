"""Cost estimate of `eva.detect`."""

from __future__ import annotations

import numpy as np
import torch

from vfm.plugin import Cost, Preflight, VisionCheckpoint
from vfm_eva.dense.detect.checkpoint import build_detector
from vfm_eva.dense.detect.samples import DetectionInputs
from vfm_eva.dense.detect.stages import EvaDetect
from vfm_eva.dense.detect.task import DetectTask
from vfm_eva.dense.detect.train import build_visual
from vfm_eva.finetune.estimate import OBJECTS, Planned, _ragged, estimate_with_encoder, images, known_classes, zeros

POSITIVE = 0.25  # largest share of the sampled regions that are objects


def eva_detect_cost(config: EvaDetect, ctx: Preflight) -> Cost:
    """Estimate the cost of training a detector, with the mean number of objects in each crop.

    It is unknown until the encoder, or the detector to start from, exists.
    """
    data = ctx.artifact(config.data)
    names = known_classes(ctx, config.data)
    objects = -(-data.num_objects // data.num_samples) if data else OBJECTS  # the mean, rounded up
    start = ctx.artifact(config.start) if config.start else None
    if config.start and not start:
        return Cost(unknown=(f"the detector {config.start}",))
    detector = config.detector
    class_images = None
    if detector.cascade.loss == "federated":
        class_images = np.ones(len(names), np.int64)

    def plan(encoder: VisionCheckpoint) -> Planned:
        visual = build_visual(config, encoder.path)
        if config.grad_checkpointing:
            visual.set_grad_checkpointing()  # type: ignore[operator]
        task = DetectTask(
            build_detector(visual, len(names), detector),
            names,
            class_images=class_images,
            trained=config.trained,
            decay_vectors=config.decay_vectors,
        )
        side = detector.image_size

        def inputs(number: int) -> DetectionInputs:
            labels = _ragged(number, objects, dtype=torch.int64)
            boxes = _ragged(number, objects, 4, dtype=torch.float32)
            if detector.masks:
                masks = _ragged(number, objects, side, side, dtype=torch.bool)
            else:
                masks = None
            return DetectionInputs(images(number, side), zeros(number, 2), labels, boxes, masks)

        return task, inputs

    if start:
        start_encoder = VisionCheckpoint.load(start.path / start.encoder, verify=False)
    else:
        start_encoder = None
    return estimate_with_encoder(config, ctx, plan, start_encoder, selected=POSITIVE)
