"""A predictor that paints what it finds by a rule, and checkpoints of it, for the tests of dense evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vfm.eval import DenseTask, Instances, PanopticMap
from vfm.interfaces import AnnotatedImages, Artifact, DenseCheckpoint, Stage

BRIGHT = 128


@dataclass
class BrightParts:
    """Finds one object of class 0 where a picture is bright; everything else is class 1."""

    image_size: int
    tasks: list[DenseTask]

    def detect(self, images: Sequence[Image.Image]) -> list[Instances]:
        return [self._instance(np.asarray(image.convert("L")) > BRIGHT) for image in images]

    def crop_logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert crops.shape[1:] == (self.image_size, self.image_size, 3)
        bright = crops.mean(axis=-1) > BRIGHT
        return np.stack([bright, ~bright], axis=1).astype(np.float32) * 9

    def segment_all(self, images: Sequence[Image.Image]) -> list[PanopticMap]:
        bright = [np.asarray(image.convert("L")) > BRIGHT for image in images]
        return [PanopticMap(np.where(one, 0, 1), np.array([0, 1])) for one in bright]

    def _instance(self, mask: NDArray[np.bool_]) -> Instances:
        if not mask.any():
            nothing = np.empty(0, dtype=np.int64)
            return Instances(nothing, np.empty(0), np.empty((0, 4)), np.empty((0, *mask.shape), dtype=bool))
        rows, columns = np.nonzero(mask)
        box = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
        one = np.ones(1)
        return Instances(np.zeros(1, dtype=np.int64), 0.9 * one, np.array(box, dtype=float), mask[None], 0.5 * one)


class Painter(Stage):
    """Declares the predictor, as a plugin's stage does."""

    kind: Literal["toy.painter"] = "toy.painter"
    makes: ClassVar[type[Artifact]] = DenseCheckpoint
    work: ClassVar[str] = "dense_toy:load"
    predictor: ClassVar[str] = "dense_toy:load"


def load(checkpoint: DenseCheckpoint, device: torch.device) -> Any:
    return BrightParts(checkpoint.image_size, checkpoint.tasks)


def checkpoint(directory: Path, data: AnnotatedImages, **facts: Any) -> DenseCheckpoint:
    settings: dict[str, Any] = {
        "tasks": ["boxes", "masks", "semantic", "panoptic"],
        "class_names": data.class_names,
        "image_size": 8,
        "predictor": Painter.predictor,
    }
    return DenseCheckpoint.create(directory, **{**settings, **facts})
