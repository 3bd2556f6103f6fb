"""How sure a number is: the intervals and paired tests that every evaluation of vfm reports beside its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
MAX_DRAWS = 2_000_000  # counts held at once while resampling: 16 MB

Interval = tuple[float, float]


def wilson_interval(successes: int, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion of independent right-or-wrong items; sound at 0 %, at 100 % and for small `n`.

    Raises:
        ValueError: `n` is not positive or `successes` is not within 0..n.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference; no continuity correction.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # The ends are exact: rounding must not turn "none" into a lower bound of 1e-18.
    return (float(centre - half) if successes else 0.0), (float(centre + half) if successes < n else 1.0)


def mean_per_class_interval(correct: ArrayLike, classes: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the mean over classes of each class's share of right items, (N,) each; the classes are given.

    Wilson's intervals of the classes, combined by their distances from the shares. A bootstrap within the classes would
    see no spread in a class that is all right or all wrong, which with few images a class is most of them.

    Source: Zou, Huang and Zhang 2009, A note on confidence interval estimation for a linear function of binomial
    proportions (MOVER).
    """
    hits = np.asarray(correct, dtype=bool)
    _, inverse, sizes = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    right = np.bincount(inverse, weights=hits, minlength=len(sizes)).astype(int)
    intervals = [wilson_interval(int(x), int(n), confidence=confidence) for x, n in zip(right, sizes, strict=True)]
    low, high = np.array(intervals).T
    share = right / sizes
    below = np.sqrt(np.sum((share - low) ** 2)) / len(sizes)
    above = np.sqrt(np.sum((high - share) ** 2)) / len(sizes)
    return float(share.mean() - below), float(share.mean() + above)


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean; whole groups are drawn, so captions of one image stay together.

    Args:
        values: one number an item, (N,).
        groups: the image (or other cluster) of each item, (N,); None where items are independent.
        confidence: of the interval.
        num_resamples: draws; 10,000 leave an error of about 1 % of the interval's width.
        seed: of the draws.

    Source: Efron 1979; for clusters Davison and Hinkley 1997, section 3.8.
    """
    return _percentiles(_resampled_means(values, groups, None, num_resamples=num_resamples, seed=seed), confidence)


def t_interval(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Student's interval of the mean over seeds.

    Raises:
        ValueError: fewer than two values; one seed says nothing of the spread.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        raise ValueError(f"a t-interval needs two or more seeds, got {sample.size}")
    mean = float(sample.mean())
    half = float(stats.t.ppf(0.5 + confidence / 2, sample.size - 1) * sample.std(ddof=1) / np.sqrt(sample.size))
    return mean - half, mean + half


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


@dataclass(frozen=True)
class Difference:
    """Mean of second minus first with its interval, and the two-sided p of "no difference"."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Difference of two models judged on the same items, (N,) each; groups as in `bootstrap_interval`.

    With `strata`, the class of each item, (N,), it is the difference of the means over classes of each class's mean;
    items are then drawn within their class, since the classes are the data set's and not a sample of classes.

    The p-value is twice the smaller share of resamples on one side of zero, counted with one extra resample, so it
    is never below 2 / (num_resamples + 1).

    Source: Efron and Tibshirani 1993, chapters 13 and 16.
    """
    a, b = _paired(first, second)
    means = _resampled_means(b - a, groups, strata, num_resamples=num_resamples, seed=seed)
    low, high = _percentiles(means, confidence)
    below, above = int(np.sum(means <= 0)), int(np.sum(means >= 0))
    p_value = min(1.0, 2 * (min(below, above) + 1) / (num_resamples + 1))
    return Difference(stratified_mean(b - a, strata), low, high, p_value)


def stratified_mean(values: ArrayLike, strata: ArrayLike | None = None) -> float:
    """The mean, or with `strata` the mean over the strata that occur of each one's mean (mean per class recall)."""
    x = np.asarray(values, dtype=np.float64)
    if strata is None:
        return float(x.mean())
    _, inverse, sizes = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    return float(np.mean(np.bincount(inverse, weights=x) / sizes))


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"a paired test needs the same items twice, (N,) each, got {a.shape} and {b.shape}")
    return a, b


def _resampled_means(
    values: ArrayLike, groups: ArrayLike | None, strata: ArrayLike | None, *, num_resamples: int, seed: int
) -> NDArray[np.float64]:
    """Means of `num_resamples` draws of the groups with replacement, (num_resamples,)."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"the bootstrap needs one number an item, (N,), got {x.shape}")
    group_ids = np.arange(x.size) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    strata_ids = np.zeros(x.size, int) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    if not group_ids.shape == strata_ids.shape == x.shape:
        raise ValueError(
            f"every item needs its group: {x.size} items, {group_ids.size} groups, {strata_ids.size} strata"
        )
    generator = np.random.default_rng(seed)
    order = np.argsort(strata_ids, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(strata_ids))[:-1])
    means = np.zeros(num_resamples)
    for index in members:
        means += _drawn_means(x[index], group_ids[index], num_resamples, generator)
    return means / len(members)


def _drawn_means(
    x: NDArray[np.float64], group_ids: NDArray[np.int64], num_resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of draws of whole groups.

    Groups with the same sum and size are interchangeable: drawing how often each *kind* of group occurs is the same
    distribution as drawing groups, and right-or-wrong items have a handful of kinds whatever N is.
    """
    ids = np.unique(group_ids, return_inverse=True)[1]
    sums_and_sizes = np.stack([np.bincount(ids, weights=x), np.bincount(ids)])
    kinds, frequency = np.unique(sums_and_sizes, axis=1, return_counts=True)
    num_groups = int(frequency.sum())
    chunk = max(1, MAX_DRAWS // len(frequency))
    means = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        draws = generator.multinomial(num_groups, frequency / num_groups, size=size)  # (chunk, kinds)
        means.append((draws @ kinds[0]) / (draws @ kinds[1]))
    return np.concatenate(means)


def _percentiles(means: NDArray[np.float64], confidence: float) -> Interval:
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
