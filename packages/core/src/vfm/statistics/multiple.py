"""The correction of p-values for the number of tests that are read together."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return the p-values of a family of tests, (N,), corrected by Holm's step-down procedure.

    A test whose corrected value is at most alpha can be called significant: the probability of one or more false calls
    in the whole family is then at most alpha, however the tests depend on each other. NaN, of a test that could not be
    made, stays NaN and is not in the family.

    Returns:
        (N,), in the order of the input: the smallest value times N, the second smallest times N - 1, and so on, each at
        least as large as the one before it and at most 1.

    Raises:
        ValueError: the input is not (N,), or a value is neither within 0..1 nor NaN.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = ~np.isnan(p)
    if p.ndim != 1 or not np.all((p[known] >= 0) & (p[known] <= 1)):
        raise ValueError(f"expected p-values (N,) within 0..1, got {p}")
    places = np.flatnonzero(known)
    order = places[np.argsort(p[places], kind="stable")]
    corrected = np.full_like(p, np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)))
    return corrected
