"""Compiled functions that turn the entries found in a block of texts into the ids of each text, ascending, distinct."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm_curation.simd import compiled, count_less

Words = NDArray[np.uint64]
U = np.uint64
ZERO = U(0)
ONE = U(1)
SIXTEEN = U(16)
MAX_RANKED = 256  # ids of a text that are sorted by ranking, which is quadratic; more are sorted by Shell sort


@compiled
def group(
    hits: Words, hit_heads: Words, num_hits: U, owners: Words, grouped: NDArray[np.int32], cursor: Words, num_texts: int
) -> None:
    """Group the ids by text. The ids of text i end at cursor[i]."""
    for text in range(num_texts + 1):
        cursor[text] = ZERO
    for hit in range(num_hits):
        cursor[owners[hit_heads[hit]] + ONE] += ONE
    for text in range(num_texts):
        cursor[text + 1] += cursor[text]
    for hit in range(num_hits):
        owner = owners[hit_heads[hit]]
        grouped[cursor[owner]] = np.int32(hits[hit])
        cursor[owner] += ONE


@compiled
def append_sorted(grouped: NDArray[np.int32], start: U, stop: U, ids: NDArray[np.int32], num_ids: U) -> U:
    """Append grouped[start:stop] to `ids`, ascending and distinct."""
    size = stop - start
    if size > U(MAX_RANKED):
        for index in range(start, stop):
            ids[num_ids + index - start] = grouped[index]
        _shell_sort(ids, num_ids, size)
        for index in range(num_ids + ONE, num_ids + size):
            ids[index - ONE] = -1 if ids[index] == ids[index - ONE] else ids[index - ONE]
    else:  # the position of a number is how many are smaller; equal ones share a position
        for index in range(num_ids, num_ids + size):
            ids[index] = -1
        for index in range(start, stop):
            rank = ZERO
            for some in range(start, stop, SIXTEEN):
                rank += count_less(grouped, some, grouped[index], min(SIXTEEN, stop - some))
            ids[num_ids + rank] = grouped[index]
    end = num_ids
    for index in range(num_ids, num_ids + size):
        ids[end] = ids[index]
        end += U(ids[index] >= 0)
    return end


@compiled
def _shell_sort(ids: NDArray[np.int32], start: U, size: U) -> None:
    """Sort ids[start:start + size] in place. numpy's sort takes three seconds to compile."""
    gap = size // U(2)
    while gap > ZERO:
        for index in range(start + gap, start + size):
            value = ids[index]
            position = U(index)
            while position >= start + gap and ids[position - gap] > value:
                ids[position] = ids[position - gap]
                position -= gap
            ids[position] = value
        gap //= U(2)
