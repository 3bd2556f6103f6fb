"""Compute the difference that a paired comparison shows in 80 % of cases, from the spread over the items."""

from __future__ import annotations

import math
from functools import partial

import scipy  # imports `scipy.special` when it is used

from vfm.statistics.intervals import CONFIDENCE, Interval
from vfm.statistics.paired import ALPHA

POWER = 0.8


def detectable_difference(
    interval: Interval, *, num_tests: float = 1.0, num_seeds: int = 0, times_items: float = 1.0
) -> float:
    """Compute the true difference that would be called clear in 80 % of samples of as many items.

    Half of the interval is its quantile times the standard error, and the error falls with the root of the number of
    items. The difference must exceed the error by the quantiles of the test's level and of the power.

    Args:
        interval: 95 % interval of the difference before any correction.
        num_tests: Number of tests that the p-value is corrected for.
        num_seeds: Number of seeds, 0 for a comparison on items.
        times_items: Number of items in multiples of the ones measured.

    Source: Cohen 1988, Statistical power analysis for the behavioral sciences, chapter 2.
    """
    # Quantiles of Student's distribution over seeds, of the normal distribution over items.
    quantile = partial(scipy.special.stdtrit, num_seeds - 1) if num_seeds else scipy.special.ndtri
    half = float(quantile(0.5 + CONFIDENCE / 2))
    test = float(quantile(1 - ALPHA / 2 / max(1.0, num_tests)))
    power = float(quantile(POWER))
    low, high = interval
    return (high - low) / 2 / half * (test + power) / math.sqrt(times_items)
