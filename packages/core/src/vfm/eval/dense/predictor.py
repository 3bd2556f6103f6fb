"""The interface of models with a dense head that evaluations call.

`DenseCheckpoint.predictor` names a function `(checkpoint, device) -> DensePredictor`. It must be declared by the stage
that makes the checkpoint (`Stage.predictor`), and no other function is called. A predictor has exactly the methods of
the tasks that its checkpoint lists. Its methods take and return NumPy arrays and handle devices internally.
"""

# N objects, H and W height and width of an image, S side of a crop, B batch, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DenseTask = Literal["boxes", "masks", "semantic", "panoptic"]


@dataclass(frozen=True)
class Instances:
    """Objects that a model found in one image.

    Attributes:
        labels: Class of each object, (N,).
        scores: Confidence, (N,).
        boxes: Left, top, right, bottom in pixels of the image, (N, 4).
        masks: (N, H, W), if the model predicts masks.
        maskness: Mean probability inside the mask, (N,), if it is known.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    masks: NDArray[np.bool_] | None = None
    maskness: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class PanopticMap:
    """Segments that a model found in one image.

    Attributes:
        segments: Index of each pixel's segment, -1 for none, (H, W).
        labels: Class of each segment.
    """

    segments: NDArray[np.int64]
    labels: NDArray[np.int64]


class DensePredictor(Protocol):
    """A model with a dense head, loaded from its checkpoint or in training."""

    @property
    def tasks(self) -> list[DenseTask]:
        """Tasks that the model can do."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the input in pixels, S."""
        ...


class ObjectPredictor(DensePredictor, Protocol):
    """A model that predicts objects (tasks `boxes` and `masks`)."""

    def detect(self, images: Sequence[Image.Image]) -> list[Instances]:
        """Detect the objects in each image."""
        ...


class SemanticPredictor(DensePredictor, Protocol):
    """A model that predicts the class of each pixel (task `semantic`)."""

    def crop_logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score the classes for square crops, (B, S, S, 3) to (B, K, h, w) with any stride."""
        ...


class PanopticPredictor(DensePredictor, Protocol):
    """A model that predicts segments (task `panoptic`)."""

    def segment_all(self, images: Sequence[Image.Image]) -> list[PanopticMap]:
        """Predict the panoptic map of each image."""
        ...
