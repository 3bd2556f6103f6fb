"""Scores of a whole set of images (average precision, mean IoU, panoptic quality), resampled over its images.

Such a score is not a mean over images. It is computed again on random halves of the images, and two models on the same
halves. Half of the images, drawn without replacement, differ from the whole set as much as the set from all images. A
bootstrap draws images repeatedly instead: copies raise average precision, and leave out a third of the rare classes'
images, so that its intervals cover 85 to 94 % where halves cover 94 to 99 (`benchmarks/interval_coverage.py`).

All these scores are biased on few images: panoptic quality is too low, and average precision too high. The interval is
therefore for the score that is expected on as many images, and is centred on the measured one.
"""

# I images, R resamples

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # imports `scipy.special` when it is used
from numpy.typing import NDArray

from vfm.interfaces import Difference
from vfm.statistics.intervals import CONFIDENCE

NUM_RESAMPLES = 500  # each computes a score of the whole set, so fewer than for means
ENDS = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)


def image_weights(num_images: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Draw random halves of the images.

    Halves need no scaling: their mean varies as much as the mean of the whole set. Equal seeds pair two models.

    Args:
        num_images: Number I of images.
        num_resamples: Number R of halves.
        seed: Seed of the draws.

    Returns:
        (R, I), 1 if an image counts.

    Source: Politis and Romano 1994, Large sample confidence regions based on subsamples under minimal assumptions.
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((num_resamples, num_images), dtype=np.int64)
    for row in weights:
        row[generator.permutation(num_images)[: max(1, num_images // 2)]] = 1
    return weights


def paired_resamples(gaps: NDArray[np.float64], num_units: int) -> Difference:
    """Compute the percentile interval and the p-value of a difference from its resamples.

    p is twice the fraction of resamples on the other side of zero. If there are none, 500 resamples alone could only
    say p = 2/501. This is not clear among more than twelve metrics after Holm's correction. The tail is then that of a
    normal distribution with the resamples' mean and deviation, and p is at least 2^(1-N), the least p of a test that
    flips the signs of N units.

    Args:
        gaps: Difference in each resample, (R,). Infinite and NaN values are left out.
        num_units: Number N of independent units, such as images.

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapters 13 and 15.
    """
    gaps = gaps[np.isfinite(gaps)]
    low, high = np.quantile(gaps, ENDS).tolist()
    beyond = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    p_value = min(1.0, 2 * (1 + beyond) / (1 + len(gaps)))
    mean = abs(float(gaps.mean()))
    deviation = float(gaps.std())
    # If no resample crosses zero, their number limits p from below. A normal tail goes on, but not beyond the sign test
    # of as many units.
    if not beyond and deviation > 1e-9 * mean:  # without a deviation, only rounding differs
        p_value = min(p_value, max(2 * float(scipy.special.ndtr(-mean / deviation)), 2.0 ** (1 - num_units)))
    return Difference(low, high, p_value, "paired resamples")


@dataclass(frozen=True)
class ResampledScore:
    """A metric of a model over a set of images.

    Args:
        metric: Name of the metric, such as `box_ap`.
        value: The score of the whole set, 0 to 1.
        num_images: Number of images that the score is computed on.
        resampled: Seed -> the score of each resample, (R,). Models on the same images share the resamples of a seed.
        chance: Expected value of a random guess.
    """

    metric: str
    value: float
    num_images: int
    resampled: Callable[[int], NDArray[np.float64]]
    chance: float | None = None

    @property
    def num_independent(self) -> int:
        """Number of images."""
        return self.num_images

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Compute the 95 % interval of the score that is expected on as many images: percentiles of the resamples."""
        low, high = np.nanquantile(self._drawn(seed), ENDS).tolist()
        # The value is in its interval, whatever the resamples say.
        return max(0.0, min(low, self.value)), min(1.0, max(high, self.value))

    def difference(self, baseline: ResampledScore, seed: int = 0) -> Difference:
        """Compute this minus the baseline's on the same resamples, as `paired_resamples` does.

        Raises:
            ValueError: If the two scores have different images.
        """
        return paired_resamples(self.gaps(baseline, seed), self.num_images)

    def gaps(self, baseline: ResampledScore, seed: int = 0) -> NDArray[np.float64]:
        """Compute this minus the baseline's on each resample, (R,).

        Raises:
            ValueError: If the two scores have different images.
        """
        if self.num_images != baseline.num_images:
            raise ValueError(f"expected scores of the same images, got {self.num_images} and {baseline.num_images}")
        return self._drawn(seed) - baseline._drawn(seed)

    def _drawn(self, seed: int) -> NDArray[np.float64]:
        """Compute the score of each resample, (R,), shifted to be centred on the value."""
        if seed not in self._cache:
            drawn = self.resampled(seed)
            known = drawn[np.isfinite(drawn)]
            self._cache[seed] = drawn - known.mean() + self.value if len(known) else drawn
        return self._cache[seed]

    @cached_property
    def _cache(self) -> dict[int, NDArray[np.float64]]:
        return {}


def mean_of_known(values: NDArray[np.floating], axis: int | tuple[int, ...] = -1) -> NDArray[np.float64]:
    """Compute the mean over classes, ignoring NaN. NaN if all values are NaN."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=axis, dtype=np.float64)
    count = known.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
