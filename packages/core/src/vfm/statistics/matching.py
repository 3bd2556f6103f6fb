"""Matching detections with true objects: COCO's greedy rule, for all thresholds and ranges of area at once.

Source: the COCO API, github.com/cocodataset/cocoapi (`evaluateImg`), described at cocodataset.org.
"""

# D detections, G true objects, T thresholds of IoU, A ranges of area

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
ALMOST_ONE = 1 - 1e-10  # a threshold of 1 would miss equal boxes by rounding


def match_detections(
    ious: NDArray[np.float64],
    ignored: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    thresholds: NDArray[np.float64] = THRESHOLDS,
) -> NDArray[np.int64]:
    """Match the detections of an image and class, best score first, each with the free object of the largest IoU.

    An ignored object is matched only if no other can be. A crowd can be matched any number of times. If several IoUs
    are equal, the last object is taken.

    Args:
        ious: IoU of each detection, by falling score, with each object, (D, G).
        ignored: objects that do not count, by range of area, (A, G).
        crowd: objects that stand for several, (G,).
        thresholds: smallest IoU of a match, (T,).

    Returns:
        Index of each detection's object, -1 if it has none, (A, T, D).
    """
    num_detections, num_objects = ious.shape
    matches = np.full((len(ignored), len(thresholds), num_detections), -1, dtype=np.int64)
    if not num_objects:
        return matches
    limits = np.minimum(thresholds, ALMOST_ONE)
    free = np.ones((len(ignored), len(thresholds), num_objects), dtype=bool)
    counted = ~ignored[:, None, :]
    ranges, levels = np.ogrid[: len(ignored), : len(thresholds)]
    for detection in np.flatnonzero(ious.max(axis=1) >= limits.min()).tolist():
        iou = ious[detection]
        possible = (iou >= limits[:, None]) & (free | crowd)
        first = possible & counted
        chosen = np.where(first.any(axis=-1, keepdims=True), first, possible)
        # Of equal IoUs the last object is taken, as in COCO's tools. Reversed, since argmax takes the first.
        best = num_objects - 1 - np.argmax(np.where(chosen, iou, -1.0)[..., ::-1], axis=-1)
        matched = chosen.any(axis=-1)
        matches[:, :, detection] = np.where(matched, best, -1)
        # An object is taken once. Crowds stay, as any number of detections may lie in one.
        free[ranges, levels, best] &= ~matched
    return matches
