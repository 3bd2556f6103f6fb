"""Average precision and recall of detections, with weights over images: COCO's rule, and resamples of it.

Detections are matched once (`vfm.statistics.matching`). Each resample only counts the rows again. With weight 1 for
each image, the numbers equal pycocotools and lvis-api.
"""

# N detections of a class, P true objects, I images, T thresholds of IoU, A ranges of area, R resamples

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
EPSILON = np.spacing(1)
MAX_WEIGHTS = 8_000_000  # held at once


@dataclass(frozen=True)
class ClassRows:
    """The detections of a class in all images, by falling score.

    Attributes:
        image: image of each detection, (N,).
        true: whether the detection is matched with an object that counts, (A, T, N).
        ignored: whether the detection counts neither as right nor as wrong, (A, T, N).
        rank: number of detections of the same image and class with a larger score, (N,).
        object_image: image of each true object, (P,).
        object_counts: whether the object counts, (A, P).
    """

    image: NDArray[np.int64]
    true: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    rank: NDArray[np.int64]
    object_image: NDArray[np.int64]
    object_counts: NDArray[np.bool_]


@dataclass(frozen=True)
class PrecisionRecall:
    """Average precision and recall of a class. NaN without an object that counts."""

    precision: NDArray[np.float64]  # (R, A, T)
    recall: NDArray[np.float64]  # (R, A, T)


def precision_recall(rows: ClassRows, weights: NDArray[np.integer], max_rank: int | None = None) -> PrecisionRecall:
    """Compute average precision (101 recalls) and recall of a class.

    Args:
        rows: detections of the class.
        weights: how often each image counts, (R, I).
        max_rank: number of detections of each image to use for the recall.
    """
    num_areas, num_levels, _ = rows.true.shape
    shape = (len(weights), num_areas, num_levels)
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    hits = np.flatnonzero((rows.true & ~rows.ignored).any(axis=(0, 1)))
    last = int(hits[-1]) + 1 if len(hits) else 0  # rows ranked after the last hit have no effect
    step = max(1, MAX_WEIGHTS // max(1, last))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        counted = weights[part].astype(np.float64)
        totals = counted[:, rows.object_image] @ rows.object_counts.T.astype(np.float64)  # (R, A)
        of_rows = counted[:, rows.image[:last]]
        for area in range(num_areas):
            known = totals[:, area] > 0
            precision[part, area], recall[part, area] = _of_area(rows, of_rows, totals[:, area], area, last, max_rank)
            precision[part, area][~known] = np.nan
            recall[part, area][~known] = np.nan
    return PrecisionRecall(precision, recall)


def _of_area(
    rows: ClassRows,
    counted: NDArray[np.float64],
    total: NDArray[np.float64],
    area: int,
    last: int,
    max_rank: int | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute average precision and recall by threshold, (R, T) each."""
    num_levels = rows.true.shape[1]
    precision, recall = (np.zeros((len(counted), num_levels)) for _ in range(2))
    divisor = np.maximum(total, 1)[:, None]
    seen: dict[bytes, NDArray[np.float64]] = {}  # thresholds mostly ignore the same rows
    for level in range(num_levels):
        counts = ~rows.ignored[area, level, :last]
        places = np.flatnonzero(rows.true[area, level, :last] & counts)
        if not len(places):
            continue
        key = counts.tobytes()
        if key not in seen:
            seen[key] = np.cumsum(counted * counts, axis=1)
        of_hits = counted[:, places]
        right = np.cumsum(of_hits, axis=1)
        envelope = right / (seen[key][:, places] + EPSILON)
        # The best precision at this recall or a higher one, as in COCO's rule.
        envelope = np.maximum.accumulate(envelope[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, right / divisor, side="right")
        gained = np.diff(reached, axis=1, prepend=0)
        precision[:, level] = (envelope * gained).sum(axis=1) / len(RECALLS)
        within = of_hits if max_rank is None else of_hits * (rows.rank[places] < max_rank)
        recall[:, level] = within.sum(axis=1) / divisor[:, 0]
    return precision, recall
