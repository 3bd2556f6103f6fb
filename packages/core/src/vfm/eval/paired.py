"""Whether a model is really better than another on the same items: the paired tests, and the interval of the gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vfm.eval.statistics import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Interval,
    Units,
    effective_size,
    stratified_mean,
    t_interval,
    wilson_interval,
)

MAX_OUTCOMES = 1_000_000  # of all flips that are gone through one by one; where there are more, some are drawn


@dataclass(frozen=True)
class McNemar:
    """Items that only the second model got right (`wins`), only the first (`losses`), and the exact two-sided p."""

    wins: int
    losses: int
    p_value: float


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Whether two models differ on the same right-or-wrong items, (N,) each; no approximation, any `N`.

    Raises:
        ValueError: the two do not judge the same number of items.

    Source: McNemar 1947; the exact binomial form of the test.
    """
    a, b = _paired(first, second)
    wins, losses = int(np.sum(~(a > 0) & (b > 0))), int(np.sum((a > 0) & ~(b > 0)))
    p_value = 2.0 * float(stats.binom.cdf(min(wins, losses), wins + losses, 0.5))
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
    """Two-sided p of "no difference" of two models on the same items, (N,) each: exact McNemar's, with weights.

    Were the models alike, the two could be exchanged on any item: the difference of the means, in which each item
    weighs 1 / N or with `strata` 1 / (strata x items of its stratum), would as well have come with any of its parts'
    signs turned round. The p-value is the share of all turnings that make it as large as it is. `groups` are turned as
    one. Valid for any number of items and for strata of one.

    Up to a million outcomes all are counted; else `num_draws` are drawn, with the one that was seen among them.

    Source: Fisher 1935, The design of experiments, section 21; Pitman 1937.
    """
    a, b = _paired(first, second)
    effects = Units.of(b - a, groups, strata).effects
    sizes, counts = np.unique(np.abs(effects[effects != 0]), return_counts=True)
    seen = abs(float(effects.sum())) - 1e-9 * float(np.abs(effects).sum())  # another order may differ in the last bits
    if np.prod(counts + 1.0) <= MAX_OUTCOMES:
        totals, chances = _all_flips(sizes, counts)
        return min(1.0, float(chances[np.abs(totals) >= seen].sum()))
    # Of parts of one size only the number that is turned matters, and right-or-wrong items have a few sizes.
    turned = np.random.default_rng(seed).binomial(counts, 0.5, size=(num_draws, len(counts)))
    totals = (counts - 2 * turned) @ sizes
    return (1 + int(np.sum(np.abs(totals) >= seen))) / (1 + num_draws)


def _all_flips(
    sizes: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every sum that turning signs can make of `counts` parts of each of the `sizes`, and its chance."""
    totals, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        turned = np.arange(count + 1)
        totals = np.add.outer(totals, size * (count - 2 * turned)).ravel()
        chances = np.outer(chances, stats.binom.pmf(turned, count, 0.5)).ravel()
    return totals, chances


def newcombe_interval(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Interval of second minus first on the same right-or-wrong items, (N,) each: of the means, or of stratified ones.

    Wilson's intervals of both shares, combined by their correlation. Sound for few items and where the models agree
    on all of them. With `groups` or `strata` it is taken at the `effective_size` of the differences.

    Source: Newcombe 1998, Improved confidence intervals for the difference between binomial proportions based on
    paired data (method 10).
    """
    a, b = _paired(first, second)
    n = effective_size(b - a, groups, strata)
    p, q, both = (stratified_mean(values, strata) for values in (a, b, a * b))
    (p_low, p_high), (q_low, q_high) = (wilson_interval(share * n, n, confidence=confidence) for share in (p, q))
    covariance, scale = both - p * q, p * (1 - p) * q * (1 - q)
    if covariance > 0:
        covariance = max(covariance - 1 / (2 * n), 0.0)
    correlation = covariance / np.sqrt(scale) if scale > 0 else 0.0

    def distance(down: float, up: float) -> float:
        return float(np.sqrt(max(0.0, down**2 - 2 * correlation * down * up + up**2)))

    return q - p - distance(q - q_low, p_high - p), q - p + distance(p - p_low, q_high - q)


def paired_t(first: ArrayLike, second: ArrayLike) -> tuple[Interval, float]:
    """Interval and two-sided p of the mean of second minus first over the same seeds, (N,) each.

    What a claim about a method needs: items show that one training differs from another, seeds that the next one will.
    Gaps that are all the same have no spread to judge by: their p is that of turned signs, 2 ** (1 - N), and their
    interval reaches from zero to the gap.

    Raises:
        ValueError: fewer than two seeds.

    Source: Student 1908, the paired t-test.
    """
    a, b = _paired(first, second)
    if a.size < 2:
        raise ValueError(f"a test over seeds needs two or more, got {a.size}")
    gaps = b - a
    if np.ptp(gaps) <= 1e-9 * np.abs(gaps).max():
        gap = float(gaps.mean())
        return (min(gap, 0.0), max(gap, 0.0)), 2.0 ** (1 - gaps.size) if gap else 1.0
    return t_interval(gaps), float(stats.ttest_1samp(gaps, 0.0).pvalue)


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"a paired test needs the same items twice, (N,) each, got {a.shape} and {b.shape}")
    return a, b
