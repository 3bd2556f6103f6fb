"""Paired tests of two models on the same items, the interval of their difference, and Holm's correction of p-values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # imports `scipy.stats` when it is used, which takes half of torch's time
from numpy.typing import ArrayLike, NDArray

from vfm.statistics.intervals import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Interval,
    Units,
    effective_size,
    stratified_mean,
    t_interval,
    wilson_interval,
)

ALPHA = 0.05  # level of the tests that belong to intervals of 95 %
MAX_OUTCOMES = 1_000_000  # most flips that are enumerated; if there are more, flips are drawn at random


@dataclass(frozen=True)
class McNemar:
    """Result of McNemar's test.

    It has the items that only the second model got right (`wins`), the ones that only the first got right (`losses`),
    and the exact two-sided p.
    """

    wins: int
    losses: int
    p_value: float


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Test whether two models differ on the same right-or-wrong items. Exact for any number of items.

    Args:
        first: Whether the first model is right, (N,).
        second: Whether the second model is right, (N,).

    Raises:
        ValueError: If the models have different numbers of items.

    Source: McNemar 1947, in the exact binomial form of the test.
    """
    a, b = _paired(first, second)
    wins = int(np.sum(~(a > 0) & (b > 0)))
    losses = int(np.sum((a > 0) & ~(b > 0)))
    p_value = 2.0 * float(scipy.stats.binom.cdf(min(wins, losses), wins + losses, 0.5))
    return McNemar(wins, losses, min(1.0, p_value))


def sign_flip_p(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
    num_draws: int = NUM_RESAMPLES,
    seed: int = 0,
) -> float:
    """Compute the two-sided p-value of "no difference" by flipping signs.

    If the models were equally good, they could be exchanged on any item. The difference of the means, in which each
    item weighs 1 / N or with `strata` 1 / (strata x items of its stratum), would be as likely with the sign of any term
    flipped. The p-value is the fraction of all flips whose difference is at least as large as the observed one. The
    items of a group are flipped together. For right and wrong items this is exact McNemar's, with weights. Valid for
    any number of items and for strata with a single item.

    Up to a million outcomes are enumerated. Beyond that, `num_draws` are drawn, including the observed one.

    Args:
        first: Values of the first model, (N,).
        second: Values of the second model on the same items, (N,).
        groups: Group of each item, (N,).
        strata: Stratum of each item, (N,).
        num_draws: Number of flips that are drawn.
        seed: Seed of the draws.

    Source: Fisher 1935, The design of experiments, section 21. Pitman 1937.
    """
    a, b = _paired(first, second)
    effects = Units.of(b - a, groups, strata).effects
    sizes, counts = np.unique(np.abs(effects[effects != 0]), return_counts=True)
    # Another order of summation may differ in the last bits.
    seen = abs(float(effects.sum())) - 1e-9 * float(np.abs(effects).sum())
    # Of terms of equal size only the number of flips matters, which makes few outcomes of many items.
    if np.prod(counts + 1.0) <= MAX_OUTCOMES:
        totals, chances = _all_flips(sizes, counts)
        return min(1.0, float(chances[np.abs(totals) >= seen].sum()))
    # Of terms with equal size, only the number of flips matters, and right-or-wrong items have only a few sizes.
    flipped = np.random.default_rng(seed).binomial(counts, 0.5, size=(num_draws, len(counts)))
    totals = (counts - 2 * flipped) @ sizes
    # The observed sum counts as one of the draws, so the p-value is never 0.
    return (1 + int(np.sum(np.abs(totals) >= seen))) / (1 + num_draws)


def _all_flips(
    sizes: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Enumerate every sum that flips of `counts` terms of each of the `sizes` can give, with its probability."""
    totals = np.zeros(1)
    chances = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        flipped = np.arange(count + 1)
        totals = np.add.outer(totals, size * (count - 2 * flipped)).ravel()
        chances = np.outer(chances, scipy.stats.binom.pmf(flipped, count, 0.5)).ravel()
    return totals, chances


def newcombe_interval(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Compute the interval of second minus first on the same right-or-wrong items.

    It combines Wilson's intervals of both (stratified) means by their correlation. Valid for few items and if the
    models agree on all of them. With `groups` or `strata`, it uses the `effective_size` of the differences.

    Args:
        first: Whether the first model is right, (N,).
        second: Whether the second model is right, (N,).
        groups: Group of each item, (N,).
        strata: Stratum of each item, (N,).
        confidence: Coverage of the interval.

    Source: Newcombe 1998, Improved confidence intervals for the difference between binomial proportions based on paired
    data (method 10).
    """
    a, b = _paired(first, second)
    n = effective_size(b - a, groups, strata)
    p = stratified_mean(a, strata)
    q = stratified_mean(b, strata)
    both = stratified_mean(a * b, strata)
    p_low, p_high = wilson_interval(p * n, n, confidence=confidence)
    q_low, q_high = wilson_interval(q * n, n, confidence=confidence)
    covariance = both - p * q
    scale = p * (1 - p) * q * (1 - q)
    if covariance > 0:
        # Newcombe's correction for continuity of a positive correlation (method 10 of his paper).
        covariance = max(covariance - 1 / (2 * n), 0.0)
    correlation = covariance / np.sqrt(scale) if scale > 0 else 0.0

    def distance(down: float, up: float) -> float:
        square = down**2 - 2 * correlation * down * up + up**2
        return float(np.sqrt(max(0.0, square)))

    below = distance(q - q_low, p_high - p)
    above = distance(p - p_low, q_high - q)
    return q - p - below, q - p + above


def paired_t(first: ArrayLike, second: ArrayLike) -> tuple[Interval, float]:
    """Compare two models over the same seeds by Student's paired test.

    A claim about a method needs this test: items show that one training run differs from another, seeds that the next
    run will. If all differences are equal, they have no spread: the p-value is the one of sign flips, 2 ** (1 - N), and
    the interval spans from zero to the difference.

    Args:
        first: Value of the first model with each seed, (N,).
        second: Value of the second model with each seed, (N,).

    Returns:
        Interval and two-sided p-value of the mean of second minus first.

    Raises:
        ValueError: If there are fewer than two seeds.

    Source: Student 1908, the paired t-test.
    """
    a, b = _paired(first, second)
    if a.size < 2:
        raise ValueError(f"expected two or more seeds, got {a.size}")
    gaps = b - a
    # Equal gaps have no spread, for which t is infinite. The sign test gives the p-value of seeds that all agree.
    if np.ptp(gaps) <= 1e-9 * np.abs(gaps).max():
        gap = float(gaps.mean())
        return (min(gap, 0.0), max(gap, 0.0)), 2.0 ** (1 - gaps.size) if gap else 1.0
    return t_interval(gaps), float(scipy.stats.ttest_1samp(gaps, 0.0).pvalue)


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"expected the same items twice, (N,) each, got {a.shape} and {b.shape}")
    return a, b


def holm(p_values: ArrayLike, counts: ArrayLike | None = None) -> NDArray[np.float64]:
    """Correct the p-values of a family of tests, (N,), by Holm's step-down procedure.

    A test whose corrected value is at most alpha can be called significant. The probability of any false calls
    in the whole family is then at most alpha, however the tests depend on each other. NaN, for a test that could not be
    computed, stays NaN and is not in the family.

    Args:
        p_values: One of each test, (N,).
        counts: As how many tests each counts, (N,): below 1 if it moves with others (`max_t`). Default: 1.

    Returns:
        (N,), in the order of the input: the smallest value times N, the second smallest times N - 1, and so on, each at
        least as large as the one before it and at most 1.

    Raises:
        ValueError: If the input is not (N,), or a value is neither within 0..1 nor NaN.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = ~np.isnan(p)
    if p.ndim != 1 or not np.all((p[known] >= 0) & (p[known] <= 1)):
        raise ValueError(f"expected p-values (N,) within 0..1, got {p}")
    indices = np.flatnonzero(known)
    order = indices[np.argsort(p[indices], kind="stable")]
    sizes = np.ones_like(p) if counts is None else np.asarray(counts, dtype=np.float64)
    remaining = np.maximum(1.0, np.cumsum(sizes[order][::-1])[::-1])
    corrected = np.full_like(p, np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * remaining))
    return corrected


def corrected_interval(
    difference: float,
    interval: Interval,
    p_value: float,
    family: ArrayLike,
    counts: ArrayLike | None = None,
    *,
    num_seeds: int = 0,
) -> Interval:
    """Widen the 95 % interval of a difference so that it excludes zero exactly if Holm's corrected p is at most 0.05.

    Holm's procedure tests the m-th largest p-value at the level 0.05 / m. The ends of the interval move away from the
    difference by the ratio of the quantiles of the two levels, Student's over seeds and otherwise the normal ones. The
    test decides about zero, since an exact test and an interval may disagree by a few items.

    Args:
        difference: The estimate.
        interval: Its 95 % interval.
        p_value: Its p-value before the correction. If it is NaN, the interval stays as it is.
        family: All p-values of the family, (N,), with this one.
        counts: As how many tests each counts, as in `holm`.
        num_seeds: Number of seeds, 0 for a comparison on items.

    Source: Strassburger and Bretz 2008, Compatible simultaneous lower confidence bounds for the Holm procedure. Theirs
    end at zero for a rejected hypothesis unless all are rejected. These have each test's own level instead.
    """
    if np.isnan(p_value):
        return interval
    p = np.asarray(family, dtype=np.float64)
    sizes = np.ones_like(p) if counts is None else np.asarray(counts, dtype=np.float64)
    tail = ALPHA / 2
    levels = np.array([1 - tail / max(1.0, float(sizes[p >= p_value].sum())), 1 - tail])
    if num_seeds:
        quantiles = scipy.special.stdtrit(num_seeds - 1, levels)
    else:
        quantiles = scipy.special.ndtri(levels)
    factor = float(quantiles[0] / quantiles[1])
    low, high = (difference + factor * (end - difference) for end in interval)
    if holm(p, counts)[np.flatnonzero(p == p_value)[-1]] > ALPHA:
        return min(low, 0.0), max(high, 0.0)
    smallest = float(np.nextafter(0.0, 1.0))
    if difference > 0:
        return (max(low, smallest), high)
    return (low, min(high, -smallest))
