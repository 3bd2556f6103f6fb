"""Average precision and recall of detections, with weights over images: COCO's rule, and resamples of it.

Detections are matched once (`vfm.statistics.matching`). Each resample only counts the rows again. With weight 1 for
each image, the numbers equal pycocotools and lvis-api.
"""

# N detections of a class, P true objects, I images, T thresholds of IoU, A ranges of area, R resamples

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
_NEXT_RECALLS = np.append(RECALLS[1:], np.inf)
EPSILON = np.spacing(1)
MAX_VALUES = 100_000  # of an intermediate array, which then stays in a processor's cache


@dataclass(frozen=True)
class ClassRows:
    """The detections of a class in all images, by falling score.

    Attributes:
        image: Image of each detection, (N,).
        true: Whether the detection is matched with an object that counts, (A, T, N).
        ignored: Whether the detection counts neither as right nor as wrong, (A, T, N).
        rank: Number of detections of the same image and class with a larger score, (N,).
        object_image: Image of each true object, (P,).
        object_counts: Whether the object counts, (A, P).
    """

    image: NDArray[np.int64]
    true: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    rank: NDArray[np.int64]
    object_image: NDArray[np.int64]
    object_counts: NDArray[np.bool_]

    @cached_property
    def hits(self) -> Hits:
        """The matched detections, collected once for all resamples."""
        return Hits.of(self)


@dataclass(frozen=True)
class PrecisionRecall:
    """Average precision and recall of a class. NaN without an object that counts."""

    precision: NDArray[np.float64]  # (R, A, T)
    recall: NDArray[np.float64]  # (R, A, T)


@dataclass(frozen=True)
class Hits:
    """The matched detections of each pair of a range of area and a threshold. Pairs with equal rows are stored once.

    Attributes:
        pair: Number of the stored pair, (A, T); the last number is a pair without hits.
        area: Range of area of each stored pair, (U,).
        counts: The sets of detections that count, (S, N'), up to the last hit.
        start: First hit of each stored pair, (U,).
        row: Detection of each hit, (H,), pair by pair.
        counted: Set of each hit, (H,).
    """

    pair: NDArray[np.int64]
    area: NDArray[np.int64]
    counts: NDArray[np.bool_]
    start: NDArray[np.int64]
    row: NDArray[np.int64]
    counted: NDArray[np.int64]

    @classmethod
    def of(cls, rows: ClassRows) -> Hits:
        """Collect the hits of a class."""
        right = rows.true & ~rows.ignored
        any_hit = np.flatnonzero(right.any(axis=(0, 1)))
        last = int(any_hit[-1]) + 1 if len(any_hit) else 0  # rows ranked after the last hit have no effect
        pair = np.full(right.shape[:2], -1, dtype=np.int64)
        sets: dict[bytes, int] = {}  # thresholds mostly ignore the same rows, and many match the same
        pairs: dict[tuple[int, int, bytes], int] = {}
        counts: list[NDArray[np.bool_]] = []
        areas: list[int] = []
        of_pairs: list[NDArray[np.int64]] = []
        set_of_pairs: list[int] = []
        for area, level in zip(*np.nonzero(right.any(axis=2)), strict=True):
            counting, hits = ~rows.ignored[area, level, :last], right[area, level, :last]
            number = sets.setdefault(counting.tobytes(), len(sets))
            if number == len(counts):
                counts.append(counting)
            pair[area, level] = pairs.setdefault((int(area), number, hits.tobytes()), len(pairs))
            if pair[area, level] == len(of_pairs):
                areas.append(int(area))
                of_pairs.append(np.flatnonzero(hits))
                set_of_pairs.append(number)
        lengths = np.array(list(map(len, of_pairs)), dtype=np.int64)
        return cls(
            pair % (len(pairs) + 1),
            np.array(areas, dtype=np.int64),
            np.array(counts, dtype=bool).reshape(len(counts), last),
            np.cumsum(lengths) - lengths,
            np.concatenate([np.empty(0, dtype=np.int64), *of_pairs]),
            np.repeat(np.array(set_of_pairs, dtype=np.int64), lengths),
        )


def precision_recall(rows: ClassRows, weights: NDArray[np.integer], max_rank: int | None = None) -> PrecisionRecall:
    """Compute average precision (101 recalls) and recall of a class.

    Args:
        rows: Detections of the class.
        weights: How often each image counts, (R, I).
        max_rank: Number of detections of each image to use for the recall.
    """
    hits = rows.hits
    shape = (*hits.pair.shape, len(weights))
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    step = max(1, MAX_VALUES // max(1, hits.counts.size + len(hits.row)))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        # Resamples are the last axis, so that sums over detections run along contiguous memory.
        counted = weights[part].T.astype(np.float64)
        totals = rows.object_counts.astype(np.float64) @ counted[rows.object_image]  # (A, R)
        scores = _of_hits(rows, counted, totals, max_rank)
        for table, of_pairs in zip((precision, recall), scores, strict=True):
            table[:, :, part] = np.where(totals[:, None] > 0, of_pairs[hits.pair], np.nan)
    return PrecisionRecall(precision.transpose(2, 0, 1), recall.transpose(2, 0, 1))


def _of_hits(
    rows: ClassRows, counted: NDArray[np.float64], totals: NDArray[np.float64], max_rank: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute average precision and recall of each pair, (U + 1, R) each, the last without hits.

    Args:
        rows: Detections of the class.
        counted: How often each image counts, (I, R).
        totals: Number of true objects by range of area, (A, R).
        max_rank: As for `precision_recall`.
    """
    hits = rows.hits
    of_rows = counted[rows.image[: hits.counts.shape[1]]]
    none = np.zeros((1, counted.shape[1]))
    if not len(hits.row):
        return none, none
    lengths = np.diff(hits.start, append=len(hits.row))
    divisor = np.maximum(totals, 1)[hits.area]  # (U, R)
    of_hits = of_rows[hits.row]
    right = np.cumsum(of_hits, axis=0)
    right -= np.repeat(right[hits.start] - of_hits[hits.start], lengths, axis=0)
    seen = np.cumsum(of_rows * hits.counts[:, :, None], axis=1)[hits.counted, hits.row]
    envelope = right / (seen + EPSILON)
    for start, length in zip(hits.start.tolist(), lengths.tolist(), strict=True):
        # The best precision at this recall or a higher one, as in COCO's rule.
        falling = envelope[start : start + length][::-1]
        np.maximum.accumulate(falling, axis=0, out=falling)
    reached = num_recalls(right / np.repeat(divisor, lengths, axis=0))
    gained = np.diff(reached, axis=0, prepend=0)
    gained[hits.start] = reached[hits.start]
    precision = np.add.reduceat(envelope * gained, hits.start, axis=0) / len(RECALLS)
    if max_rank is not None:
        of_hits = of_hits * (rows.rank[hits.row] < max_rank)[:, None]
    recall = np.add.reduceat(of_hits, hits.start, axis=0) / divisor
    return np.concatenate([precision, none]), np.concatenate([recall, none])


def num_recalls(reached: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count the recalls in `RECALLS` up to each value, as `np.searchsorted` with `side="right"` does, but faster."""
    below = np.minimum(reached * (len(RECALLS) - 1), len(RECALLS) - 1).astype(np.int64)
    # The product may be rounded across a recall, so both neighbours are compared.
    return np.asarray(below + (RECALLS[below] <= reached) + (_NEXT_RECALLS[below] <= reached), dtype=np.int64)
