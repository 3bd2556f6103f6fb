"""The k-th largest of any number of scores in a fixed memory, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


def kth_largest(batches: Callable[[], Iterable[Scores]], k: int) -> float:
    """The value of the k-th largest score.

    Counts them by the upper half of their bits, then those of the half that holds the k-th by the lower one.

    Args:
        batches: gives all scores anew, in batches of any size and order; no NaN. It is called twice.
        k: 1 for the largest.
    """
    upper, above = _bin_of(batches, k, lambda bits: bits >> np.uint32(16))
    lower, _ = _bin_of(batches, k - above, lambda bits: bits[bits >> np.uint32(16) == upper] & np.uint32(0xFFFF))
    return float(_scores(np.array([upper << 16 | lower], dtype=np.uint32))[0])


def _bin_of(
    batches: Callable[[], Iterable[Scores]], k: int, part: Callable[[NDArray[np.uint32]], NDArray[np.uint32]]
) -> tuple[int, int]:
    """The value of `part` that the k-th largest has, and how many scores have a larger one."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for scores in batches():
        counts += np.bincount(part(_ordered_bits(scores)), minlength=len(counts))
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, k))
    return len(counts) - 1 - place, int(from_above[place - 1]) if place else 0


def _ordered_bits(scores: Scores) -> NDArray[np.uint32]:
    """Integers in the order of the scores: a float's bits, the negative ones turned round."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def _scores(ordered: NDArray[np.uint32]) -> Scores:
    """The scores of `_ordered_bits`."""
    bits = np.where(ordered >> np.uint32(31), ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.view(np.float32)
