"""Soft non-maximum suppression: overlapping detections get a lower score instead of being removed.

Source: Bodla et al. 2017 (arXiv:1704.04503), the linear form, with EVA's settings (IoU 0.6, scores from 0.001).
"""

# N detections

from __future__ import annotations

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from vfm.eval.detection.detections import Detections

IOU = 0.6  # EVA's setting
MIN_SCORE = 1e-3  # EVA's; a detection that has decayed to less is dropped


def soft_nms(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], *, iou: float = IOU, min_score: float = MIN_SCORE
) -> NDArray[np.float64]:
    """Apply linear soft-NMS to the scores of detections with the same image and class.

    Beginning with the best detection, the score of each lower one that overlaps it by more than `iou` is multiplied by
    one minus their IoU.

    Args:
        boxes: Left, top, right, bottom, (N, 4).
        scores: (N,).
        iou: Overlap above which scores are lowered.
        min_score: Lower scores become 0.

    Returns:
        The new scores, (N,).
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    overlaps = np.asarray(coco_mask.iou(corners, corners, [0] * len(boxes))).reshape(len(boxes), len(boxes))
    softened = scores.astype(np.float64).copy()
    remaining = np.ones(len(scores), dtype=bool)
    for _ in range(len(scores)):
        best = int(np.argmax(np.where(remaining, softened, -np.inf)))
        remaining[best] = False
        lowered = remaining & (overlaps[best] > iou)
        softened[lowered] *= 1 - overlaps[best, lowered]
    return np.where(softened >= min_score, softened, 0.0)


def soften(detections: Detections) -> Detections:
    """Apply `soft_nms` within each image and class, and drop detections whose score becomes 0."""
    groups = np.unique(np.stack([detections.image, detections.labels]), axis=1, return_inverse=True)[1].ravel()
    order = np.argsort(groups, kind="stable")
    scores = detections.scores.copy()
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(rows) > 1:
            scores[rows] = soft_nms(detections.boxes[rows], detections.scores[rows])
    return detections.with_scores(scores)[scores > 0]
