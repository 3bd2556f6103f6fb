"""Losses of a cascade stage for classes, boxes and masks."""

# R boxes of all images, K classes, M side of a mask

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


def softmax_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of scores (R, K + 1) and labels (R,), where label K is the background."""
    return F.cross_entropy(scores, labels)


def sigmoid_loss(scores: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Compute the binary cross-entropy, summed over classes and divided by the number of boxes.

    Args:
        scores: (R, K + 1). The last column is not used.
        labels: (R,), K for the background.
        counted: Classes that count, (K,) bool. None: all.
    """
    num_classes = scores.shape[1] - 1
    targets = F.one_hot(labels, num_classes + 1)[:, :-1].to(scores.dtype)
    scores = scores[:, :-1]
    if counted is not None:
        scores = scores[:, counted]
        targets = targets[:, counted]
    return F.binary_cross_entropy_with_logits(scores, targets, reduction="sum") / max(1, len(labels))


def box_loss(deltas: Tensor, targets: Tensor, positive: Tensor, beta: float = 0.0) -> Tensor:
    """Compute the smooth L1 loss of the positive boxes, divided by the number of all boxes.

    Args:
        deltas: Predicted refinements, (R, 4).
        targets: Target refinements, (R, 4).
        positive: Boxes with an object, (R,) bool.
        beta: Difference below which the loss is quadratic.
    """
    total = F.smooth_l1_loss(deltas[positive], targets[positive], beta=beta, reduction="sum")
    return total / max(1, len(positive))


def mask_loss(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean binary cross-entropy of the masks predicted for each box's class, 0 without boxes.

    Args:
        logits: (R, K, M, M).
        targets: (R, M, M).
        labels: (R,), all below K.
    """
    if not len(labels):
        return logits.sum() * 0  # keeps the mask head in the graph
    return F.binary_cross_entropy_with_logits(logits[torch.arange(len(labels)), labels], targets)


def mask_targets(
    masks: Sequence[Tensor], boxes: Sequence[Tensor], matched: Sequence[Tensor], size: int, *, aligned: bool = True
) -> Tensor:
    """Crop and resize object masks to their boxes, (R, M, M).

    Args:
        masks: Masks of each image's objects, (N_i, H, W).
        boxes: Boxes of each image, (R_i, 4).
        matched: Index of each box's object, (R_i,).
        size: Side of a target, M.
        aligned: As in `pool_boxes`. If True, targets are 0 or 1, as in detectron2, else fractions, as in torchvision.
    """
    crops: list[Tensor] = []
    for mask, box, match in zip(masks, boxes, matched, strict=True):
        rows = torch.cat([match[:, None].to(box.dtype), box], dim=1)  # (R_i, 5): number of the mask, then its box
        crops.append(roi_align(mask[:, None].to(box.dtype), rows, size, 1.0, 0, aligned)[:, 0])
    targets = torch.cat(crops)
    if not aligned:
        return targets
    # detectron2 (aligned) makes targets binary again after bilinear pooling, torchvision does not.
    return (targets >= 0.5).to(targets.dtype)
