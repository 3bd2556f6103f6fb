"""Cost estimate of `eva.finetune`, with helpers for other stages that train from an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vfm.data import Ragged
from vfm.models import known_checkpoint
from vfm.plugin import Artifact, Cost, Preflight, Ref, TaggedImages, VisionCheckpoint
from vfm.train import Task, estimate_training
from vfm_eva.finetune.finetune import build_classifier, classifier_task
from vfm_eva.finetune.labeled_images import LabeledImages
from vfm_eva.finetune.stages import EvaFinetune

OBJECTS = 8  # assumed objects per image while the data are not known
ASSUMED = 1000  # assumed number of classes while the data are not known
Planned = tuple[Task[Any], Callable[[int], Any]]
"""A task on the meta device, and a function that creates its inputs for a number of samples."""


def _ragged(number: int, *shape: int, dtype: torch.dtype) -> Ragged:
    """Create `number` tensors of equal shape."""
    return Ragged(tuple(torch.zeros(*shape, dtype=dtype) for _ in range(number)))


def eva_finetune_cost(config: EvaFinetune, ctx: Preflight) -> Cost:
    """Estimate the cost of fine-tuning. It is unknown until the encoder exists."""
    data, names = ctx.artifact(config.data), known_classes(ctx, config.data)

    def plan(encoder: VisionCheckpoint) -> Planned:
        task = classifier_task(config, build_classifier(config, encoder, names))
        side, several = task.preprocess.image_size, isinstance(data, TaggedImages)

        def inputs(number: int) -> LabeledImages:
            if several:
                return LabeledImages(images(number, side), torch.zeros(number, len(names), dtype=torch.bool))
            return LabeledImages(images(number, side), zeros(number))

        return task, inputs

    return estimate_with_encoder(config, ctx, plan)


def estimate_with_encoder(
    config: Any,
    ctx: Preflight,
    plan: Callable[[Any], Planned],
    checkpoint: Artifact | None = None,
    *,
    selected: float = 1.0,
) -> Cost:
    """Estimate the cost of a training run that starts from an encoder. It is unknown until the encoder exists.

    Args:
        config: Configuration of the training stage, with `encoder` and `data`.
        ctx: Looks up artifacts that already exist.
        plan: Builds the task for a checkpoint, whose folder may hold a configuration without weights.
        checkpoint: The encoder, if it differs from `config.encoder`.
        selected: As in `estimate_training`.
    """
    with known_checkpoint(ctx, config.encoder) as planned:
        checkpoint = checkpoint or planned
        if checkpoint is None:
            return Cost(unknown=(f"the encoder {config.encoder}",))
        with torch.device("meta"):
            task, inputs = plan(checkpoint)
    data = config.data
    unknown = () if ctx.artifact(data) else (f"the classes of {data}, for which {ASSUMED} are assumed",)
    return replace(estimate_training(task, inputs, config, selected=selected), unknown=unknown)


def known_classes(ctx: Preflight, ref: Ref[Any]) -> list[str]:
    """List the class names of a dataset, or numbers for a dataset that does not exist yet."""
    data = ctx.artifact(ref)
    return list(data.class_names) if data else [str(number) for number in range(ASSUMED)]


def images(number: int, side: int) -> Tensor:
    """Create blank images, uint8 (number, 3, side, side)."""
    return torch.zeros(number, 3, side, side, dtype=torch.uint8)


def zeros(*shape: int) -> Tensor:
    """Create an int64 tensor of zeros."""
    return torch.zeros(*shape, dtype=torch.int64)
