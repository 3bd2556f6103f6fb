"""Check that ranges of units are a whole source, without a gap or an overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[int] | NDArray[np.int64]


def check_tiling(starts: Numbers, stops: Numbers, size: int) -> None:
    """Check that sorted ranges cover the units 0 to `size`, each once. A range may be empty.

    Args:
        starts: First unit of each range.
        stops: Unit after the last one of each range.
        size: Number of units.

    Raises:
        ValueError: If a unit is in no range or in two, or a range ends before it starts.
    """
    begins = np.append(np.asarray(starts, dtype=np.int64), size)
    ends = np.insert(np.asarray(stops, dtype=np.int64), 0, 0)
    backwards = np.flatnonzero(ends[1:] < begins[:-1])
    if len(backwards):
        first = backwards[0]
        raise ValueError(f"{ends[first + 1]} to {begins[first]} are a range that ends before it starts")
    wrong = np.flatnonzero(begins != ends)
    if not len(wrong):
        return
    begin, end = begins[wrong[0]], ends[wrong[0]]
    if begin > end:
        raise ValueError(f"{end} to {begin} were not accounted for")
    raise ValueError(f"{begin} to {end} are {'beyond the end' if wrong[0] == len(starts) else 'accounted for twice'}")
