"""From the entries found in a block of texts to the ids of each text, ascending and distinct; compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm_curation.simd import compiled, count_less

Words = NDArray[np.uint64]
U = np.uint64
ZERO, ONE, SIXTEEN = U(0), U(1), U(16)
MAX_RANKED = 256  # ids of a text that are sorted by ranking, which is quadratic; more are sorted by Shell sort


@compiled
def group(
    found: Words, where: Words, num_found: U, owners: Words, grouped: NDArray[np.int32], cursor: Words, num_texts: int
) -> None:
    """Group the ids by text; those of text i end at cursor[i]."""
    for text in range(num_texts + 1):
        cursor[text] = ZERO
    for one in range(num_found):
        cursor[owners[where[one]] + ONE] += ONE
    for text in range(num_texts):
        cursor[text + 1] += cursor[text]
    for one in range(num_found):
        owner = owners[where[one]]
        grouped[cursor[owner]] = np.int32(found[one])
        cursor[owner] += ONE


@compiled
def append_sorted(grouped: NDArray[np.int32], start: U, stop: U, ids: NDArray[np.int32], num_ids: U) -> U:
    """Append grouped[start:stop] to `ids`, ascending and distinct."""
    size = stop - start
    if size > U(MAX_RANKED):
        for one in range(start, stop):
            ids[num_ids + one - start] = grouped[one]
        _shell_sort(ids, num_ids, size)
        for place in range(num_ids + ONE, num_ids + size):
            ids[place - ONE] = -1 if ids[place] == ids[place - ONE] else ids[place - ONE]
    else:  # the position of a number is how many are smaller; equal ones share a position
        for place in range(num_ids, num_ids + size):
            ids[place] = -1
        for one in range(start, stop):
            rank = ZERO
            for some in range(start, stop, SIXTEEN):
                rank += count_less(grouped, some, grouped[one], min(SIXTEEN, stop - some))
            ids[num_ids + rank] = grouped[one]
    end = num_ids
    for place in range(num_ids, num_ids + size):
        ids[end] = ids[place]
        end += U(ids[place] >= 0)
    return end


@compiled
def _shell_sort(ids: NDArray[np.int32], start: U, size: U) -> None:
    """Sort ids[start:start + size] in place; numpy's sort takes three seconds to compile."""
    gap = size // U(2)
    while gap > ZERO:
        for one in range(start + gap, start + size):
            value, place = ids[one], U(one)
            while place >= start + gap and ids[place - gap] > value:
                ids[place] = ids[place - gap]
                place -= gap
            ids[place] = value
        gap //= U(2)
