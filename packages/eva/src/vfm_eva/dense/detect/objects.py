"""Annotated, detected and matched objects of an image."""

# R boxes of an image, N objects of an image, K classes, M side of a mask

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

Size = tuple[int, int]
"""Height and width of an image."""


@dataclass(frozen=True)
class TargetObjects:
    """Annotated objects of an image.

    Labels are (N,), boxes (N, 4), and masks (N, H, W) or None.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class DetectedObjects:
    """Detections of an image.

    Labels are (R,), scores (R,), boxes (R, 4), and masks (R, M, M) relative to their boxes.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Matched:
    """Boxes of an image, each with the object that it overlaps most.

    Attributes:
        boxes: (R, 4).
        labels: (R,), K where no object overlaps enough.
        objects: Index of the object, (R,), 0 without objects.
        targets: Box of the object, (R, 4).
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    targets: Tensor

    def __getitem__(self, rows: Tensor) -> Matched:
        return Matched(self.boxes[rows], self.labels[rows], self.objects[rows], self.targets[rows])


def match(boxes: Tensor, truth: TargetObjects, num_classes: int, iou: float) -> Matched:
    """Match boxes to the annotated objects of their image.

    Args:
        boxes: (R, 4).
        truth: Objects of the image.
        num_classes: Number of classes. This label is the background.
        iou: Smallest overlap of a match.
    """
    if not len(truth.labels):
        background = torch.full((len(boxes),), num_classes, dtype=torch.int64, device=boxes.device)
        return Matched(boxes, background, torch.zeros_like(background), boxes)
    best, objects = box_iou(truth.boxes, boxes).max(dim=0)
    labels = truth.labels[objects].masked_fill(best < iou, num_classes)
    return Matched(boxes, labels, objects, truth.boxes[objects])
