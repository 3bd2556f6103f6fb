"""Comparison of two models by all metrics of an evaluation, of which the first is the main one (max-t).

The further metrics of an evaluation move together: AP at an IoU of 0.5 and at 0.75 are computed from the same images.
Where they share resamples, the largest of their standardized gaps says as how many independent tests they count, which
is fewer than their number. `holm` then needs smaller corrections.
"""

# M metrics, R resamples

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # imports `scipy.special` when it is used
from numpy.typing import NDArray

from vfm.interfaces import Comparison, Score
from vfm.statistics.accuracy import compare
from vfm.statistics.intervals import CONFIDENCE
from vfm.statistics.resampling import ResampledScore


def compare_models(first: Sequence[Score], second: Sequence[Score], *, baseline: str, model: str) -> list[Comparison]:
    """Compare the scores of two models on the same items, metric by metric.

    Args:
        first: Scores of the baseline, the main metric first.
        second: Scores of the model, in the same order.
        baseline: Name of the baseline.
        model: Name of the model.

    Raises:
        ValueError: If the metrics or the items differ.
    """
    comparisons = []
    for before, after in zip(first, second, strict=True):
        comparisons.append(compare(before, after, baseline=baseline, model=model))
    gaps = {}
    for number, (before, after) in enumerate(zip(first, second, strict=True)):
        if number and isinstance(before, ResampledScore) and isinstance(after, ResampledScore):
            gaps[number] = after.gaps(before)
    if len(set(map(len, gaps.values()))) == 1:
        counts_as = effective_tests(np.stack(list(gaps.values()))) / len(gaps)
        for number in gaps:
            comparisons[number] = comparisons[number].model_copy(update={"counts_as": counts_as})
    return comparisons


def effective_tests(gaps: NDArray[np.float64]) -> float:
    """Estimate as how many independent tests the gaps of M metrics on the same resamples, (M, R), count: 1 to M.

    The largest |t| of the metrics is exceeded in 5 % of the resamples at some value. So many independent normal tests
    exceed it as often (by Bonferroni's bound). A gap that does not vary is no test.

    Source: Westfall and Young 1993, Resampling-based multiple testing, section 2.3 (single-step maxT).
    """
    known = gaps[:, np.isfinite(gaps).all(axis=0)]
    if not known.shape[1]:
        return float(len(gaps))
    centred = known - known.mean(axis=1, keepdims=True)
    deviation = known.std(axis=1, keepdims=True)
    moving = deviation[:, 0] > 1e-12
    if not moving.any():
        return 1.0
    largest = np.abs(centred[moving] / deviation[moving]).max(axis=0)
    limit = np.quantile(largest, CONFIDENCE)
    return float(np.clip((1 - CONFIDENCE) / (2 * scipy.special.ndtr(-limit)), 1, len(gaps)))
