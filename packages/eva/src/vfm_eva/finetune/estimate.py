"""The cost of `eva.finetune` before it runs, and what the costs of other trainings with an encoder share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vfm.data import Ragged
from vfm.models import planned_checkpoint
from vfm.plugin import (
    Artifact,
    Cost,
    Preflight,
    Ref,
    TaggedImages,
    VisionCheckpoint,
)
from vfm.train import Task, estimate_training
from vfm_eva.finetune.finetune import build_classifier, classifier_task
from vfm_eva.finetune.labeled_images import LabeledImages
from vfm_eva.finetune.stages import EvaFinetune

OBJECTS = 8  # in an image, as long as the data are not known


def _ragged(number: int, *shape: int, dtype: torch.dtype) -> Ragged:
    """Return tensors of one shape, one for each of `number` samples."""
    return Ragged(tuple(torch.zeros(*shape, dtype=dtype) for _ in range(number)))


ASSUMED = 1000  # classes of data that are not known yet
Planned = tuple[Task[Any], Callable[[int], Any]]
"""A training on the meta device, and what makes its inputs for a number of samples."""


def eva_finetune_cost(config: EvaFinetune, ctx: Preflight) -> Cost:
    """Return the cost of a training; unknown if its encoder is not known yet."""
    data, names = ctx.artifact(config.data), known_classes(ctx, config.data)

    def plan(encoder: VisionCheckpoint) -> Planned:
        task = classifier_task(config, build_classifier(config, encoder, names))
        side, several = task.preprocess.image_size, isinstance(data, TaggedImages)

        def inputs(number: int) -> LabeledImages:
            labels = torch.zeros(number, len(names), dtype=torch.bool) if several else zeros(number)
            return LabeledImages(images(number, side), labels)

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
    """Return the cost of a training that starts from an encoder; unknown if that is not known yet.

    Args:
        config: of the training, with `encoder` and `data`.
        ctx: what is known.
        plan: returns the training for a checkpoint, whose folder may hold a configuration without weights.
        checkpoint: the encoder, where it is not that of `config.encoder`.
        selected: as in `estimate_training`.
    """
    with TemporaryDirectory() as folder:
        checkpoint = checkpoint or planned_checkpoint(ctx, config.encoder, Path(folder))
        if checkpoint is None:
            return Cost(unknown=(f"the encoder {config.encoder}",))
        with torch.device("meta"):
            task, inputs = plan(checkpoint)
    data = config.data
    unknown = () if ctx.artifact(data) else (f"the classes of {data}, for which {ASSUMED} are assumed",)
    return replace(estimate_training(task, inputs, config, selected=selected), unknown=unknown)


def known_classes(ctx: Preflight, ref: Ref[Any]) -> list[str]:
    """Return the names of a dataset's classes; numbers for one that is not known yet."""
    data = ctx.artifact(ref)
    return list(data.class_names) if data else [str(number) for number in range(ASSUMED)]


def images(number: int, side: int) -> Tensor:
    """Return pictures, uint8 (number, 3, side, side)."""
    return torch.zeros(number, 3, side, side, dtype=torch.uint8)


def zeros(*shape: int) -> Tensor:
    """Return whole numbers."""
    return torch.zeros(*shape, dtype=torch.int64)
