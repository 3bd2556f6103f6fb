"""Matching detections with true objects: COCO's greedy rule, for all thresholds and ranges of area at once.

Source: the COCO API, github.com/cocodataset/cocoapi (`evaluateImg`), described at cocodataset.org.
"""

# D detections, G true objects, T thresholds of IoU, A ranges of area, P pairs, N detections with a turn at once

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
ALMOST_ONE = 1 - 1e-10  # a threshold of 1 would miss equal boxes by rounding
AT_ONCE = 1024  # detections that are matched by one call of NumPy


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
        ignored: Objects that do not count, by range of area, (A, G).
        crowd: Objects that stand for several, (G,).
        thresholds: Smallest IoU of a match, (T,).

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


@dataclass(frozen=True)
class Pairs:
    """Detections and objects of the same image and class. Detections are sorted by falling score.

    Attributes:
        group: Image and class of each detection, as a number, (D,).
        detection: Detection of each pair, ascending, (P,).
        object: Object of each pair, ascending among the pairs of a detection, (P,).
        iou: IoU of each pair, (P,).
    """

    group: NDArray[np.int64]
    detection: NDArray[np.int64]
    object: NDArray[np.int64]
    iou: NDArray[np.float64]

    def __getitem__(self, pairs: NDArray[np.bool_]) -> Pairs:
        return Pairs(self.group, self.detection[pairs], self.object[pairs], self.iou[pairs])


def match_pairs(
    pairs: Pairs,
    ignored: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    thresholds: NDArray[np.float64] = THRESHOLDS,
) -> NDArray[np.int64]:
    """Match the detections of all images and classes at once, each group as `match_detections` does.

    The detections with the best score of each group come first, then those with the second best, and so on.

    Args:
        pairs: Detections and objects that may be matched.
        ignored: Objects that do not count, by range of area, (A, G).
        crowd: Objects that stand for several, (G,).
        thresholds: Smallest IoU of a match, (T,).

    Returns:
        Index of each detection's object, -1 if it has none, (A, T, D).
    """
    limits = np.minimum(thresholds, ALMOST_ONE)
    num_areas, num_objects = ignored.shape
    matches = np.full((num_areas, len(limits), len(pairs.group)), -1, dtype=np.int64)
    # Detections with fewer pairs than others of the same turn are filled up with an object after the last.
    free = np.ones((num_areas, len(limits), num_objects + 1), dtype=bool)
    counted = np.pad(~ignored, ((0, 0), (0, 1)))[:, None]
    shared = np.append(crowd, False)
    ranges, levels = np.ogrid[:num_areas, : len(limits)]
    for detections, objects, ious in _turns(pairs[pairs.iou >= limits.min()], num_objects):
        possible = (ious >= limits[:, None, None]) & (free[:, :, objects] | shared[objects])  # (A, T, N, pairs)
        first = possible & counted[:, :, objects]
        chosen = np.where(first.any(axis=-1, keepdims=True), first, possible)
        best = objects.shape[1] - 1 - np.argmax(np.where(chosen, ious, -1.0)[..., ::-1], axis=-1)
        matched = chosen.any(axis=-1)
        of_best = objects[np.arange(len(objects)), best]
        matches[:, :, detections] = np.where(matched, of_best, -1)
        free[ranges[..., None], levels[..., None], of_best] &= ~matched
    return matches


def _turns(pairs: Pairs, nothing: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Yield detections of different groups, (N,), and their objects and IoUs, (N, pairs), best scores first.

    Args:
        pairs: The pairs.
        nothing: Object of the places that are filled up.
    """
    detections, starts, counts = np.unique(pairs.detection, return_index=True, return_counts=True)
    turns = ranks(pairs.group[detections])
    order = np.lexsort((counts, turns))  # few places are filled up if detections of similar counts are together
    for of_turn in np.split(order, np.flatnonzero(np.diff(turns[order])) + 1):
        for first in range(0, len(of_turn), AT_ONCE):
            part = of_turn[first : first + AT_ONCE]
            place = np.arange(counts[part].max())
            real = place < counts[part, None]
            at = np.where(real, starts[part, None] + place, 0)
            yield detections[part], np.where(real, pairs.object[at], nothing), np.where(real, pairs.iou[at], -1.0)


def ranks(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the equal keys before each key, (N,)."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1) != 0)
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    return rank
