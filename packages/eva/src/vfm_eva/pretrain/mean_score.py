"""The mean of one number per image as a score, with a bootstrap interval and a paired test."""

# I images, R resamples

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfm.plugin import Difference

NUM_RESAMPLES = 1000
ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class MeanScore:
    """One metric of one model: `values`, (I,), one per image; models are compared on the same images."""

    metric: str
    values: NDArray[np.float64]
    chance: float | None = None

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.values.mean())

    @property
    def num_independent(self) -> int:
        """Number of images."""
        return len(self.values)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Return the 95 % interval, percentiles of the means of resampled images."""
        low, high = np.quantile(_means(self.values, seed), ENDS).tolist()
        return low, high

    def difference(self, baseline: MeanScore, seed: int = 0) -> Difference:
        """Return this minus the baseline's; p is twice the share of resamples on the wrong side of 0."""
        gaps = _means(self.values - baseline.values, seed)
        low, high = np.quantile(gaps, ENDS).tolist()
        beyond = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
        return Difference(low, high, min(1.0, 2 * (1 + beyond) / (1 + len(gaps))), "paired bootstrap")


def _means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    rows = np.random.default_rng(seed).integers(0, len(values), (NUM_RESAMPLES, len(values)))
    means: NDArray[np.float64] = values[rows].mean(axis=1)
    return means
