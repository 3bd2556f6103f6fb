"""Scores of a whole set of images (average precision, mean IoU, panoptic quality), resampled over its images.

Such a score is not a mean over images. It is computed again for each resample, in which an image counts as often as it
was drawn. Two models are compared on the same resamples. Their difference has hardly any bias, while a single average
precision is too high on few images, and more so in its resamples (its interval is therefore reflected).
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
    """Draw how often each image counts, (R, I). The draws are multinomial, and equal seeds pair two models.

    Dirichlet weights would be smooth, but their intervals are too short in a long tail of classes.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_resamples)


def paired_bootstrap(gaps: NDArray[np.float64], num_units: int) -> Difference:
    """Compute the percentile interval and the p-value of a difference from its resamples.

    p is twice the fraction of resamples on the other side of zero. If there are none, 500 resamples alone could only
    say p = 2/501, which is not clear among more than twelve metrics after Holm's correction. The tail is then that of
    a normal distribution with the resamples' mean and deviation, and p is at least 2^(1-N), the least p of a test that
    flips the signs of N units.

    Args:
        gaps: difference in each resample, (R,). Those that are not finite are left out.
        num_units: number N of independent units, such as images.

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
    return Difference(low, high, p_value, "paired bootstrap")


@dataclass(frozen=True)
class ResampledScore:
    """A metric of a model over a set of images.

    Args:
        metric: name of the metric, such as `box_ap`.
        value: the score of the whole set, 0 to 1.
        num_images: number of images that the score is computed on.
        resampled: seed -> the score of each resample, (R,). Models on the same images share the resamples of a seed.
        reflect: reflect the interval at the value, for a score whose resamples are biased.
        chance: expected value of a random guess.
    """

    metric: str
    value: float
    num_images: int
    resampled: Callable[[int], NDArray[np.float64]]
    reflect: bool = False
    chance: float | None = None

    @property
    def num_independent(self) -> int:
        """Number of images."""
        return self.num_images

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Compute the 95 % interval: percentiles of the resamples, optionally reflected at the value.

        Source: Efron and Tibshirani 1993, An introduction to the bootstrap. Reflected, it is their basic interval.
        """
        low, high = np.nanquantile(self._drawn(seed), ENDS).tolist()
        if self.reflect:
            low, high = 2 * self.value - high, 2 * self.value - low
        # The value is in its interval, whatever the resamples say.
        return max(0.0, min(low, self.value)), min(1.0, max(high, self.value))

    def difference(self, baseline: ResampledScore, seed: int = 0) -> Difference:
        """Compute this minus the baseline's on the same resamples, as `paired_bootstrap` does.

        Raises:
            ValueError: If the two scores have different images.
        """
        return paired_bootstrap(self.gaps(baseline, seed), self.num_images)

    def gaps(self, baseline: ResampledScore, seed: int = 0) -> NDArray[np.float64]:
        """Compute this minus the baseline's on each resample, (R,).

        Raises:
            ValueError: If the two scores have different images.
        """
        if self.num_images != baseline.num_images:
            raise ValueError(f"expected scores of the same images, got {self.num_images} and {baseline.num_images}")
        return self._drawn(seed) - baseline._drawn(seed)

    def _drawn(self, seed: int) -> NDArray[np.float64]:
        if seed not in self._cache:
            self._cache[seed] = self.resampled(seed)
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
