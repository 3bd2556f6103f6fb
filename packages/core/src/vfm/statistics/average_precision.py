"""Mean average precision of images with several labels, with a bootstrap over images as its interval."""

# N images, C labels, R resamples

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vfm.interfaces import Difference
from vfm.statistics.intervals import CONFIDENCE
from vfm.statistics.resampling import paired_resamples

NUM_RESAMPLES = 1000  # each sums over all images of every label (the order is shared), so fewer than elsewhere
CHUNK = 4_000_000  # weights held at once: 32 MB


def average_precisions(
    scores: NDArray[np.floating], positives: NDArray[np.bool_], weights: NDArray[np.number] | None = None
) -> NDArray[np.float64]:
    """Compute the average precision of each label: the mean over its images of the precision at their rank.

    Images with equal scores share a rank. A NaN score is ranked last. A label without an image (of positive weight)
    gets NaN.

    Args:
        scores: Score of each label for each image, (N, C).
        positives: Labels of each image, (N, C).
        weights: How often each image counts, (R, N). Default: once.

    Returns:
        (C,), or (R, C) with weights.

    Source: Manning, Raghavan and Schütze 2008, Introduction to information retrieval, 8.4; as in scikit-learn.
    """
    if weights is None:
        table = np.ones((1, len(scores)))
    else:
        table = np.asarray(weights, dtype=np.float64)
    columns = [_average_precision(scores[:, c], positives[:, c], table) for c in range(scores.shape[1])]
    precisions = np.stack(columns, axis=1)
    return precisions[0] if weights is None else precisions


def _average_precision(
    scores: NDArray[np.floating], positives: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    known = np.where(np.isnan(scores), -np.inf, scores)
    # The order is the same in each resample, which only changes how often an image counts.
    order = np.argsort(-known, kind="stable")
    ranked = known[order]
    # Images of equal score are ranked together, so that the order in which they were read is no advantage.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last index in each run of equal scores
    places = ends[np.searchsorted(ends, np.arange(len(ranked)))]
    counted = weights[:, order]
    right = counted * positives[order]
    seen = np.maximum(np.cumsum(counted, axis=1)[:, places], 1e-300)  # if the weight is 0, so is the numerator
    precision = np.cumsum(right, axis=1)[:, places] / seen
    total = right.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: NDArray[np.float64] = (right * precision).sum(axis=1) / total
    return shares


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Mean average precision of a model's scores of each label for each image.

    Args:
        metric: Name of the metric, such as `lp_map`.
        scores: Score of each label for each image, (N, C).
        positives: Labels of each image, (N, C).
    """

    metric: str
    scores: NDArray[np.floating]
    positives: NDArray[np.bool_]

    @property
    def num_independent(self) -> int:
        """Number of images."""
        return len(self.scores)

    @property
    def chance(self) -> float:
        """Expected value of random scores, the mean over the labels that occur.

        It exceeds the fraction R / N of images with a label, since a positive image counts itself at its own rank: at
        rank i it adds 1, and each of the i - 1 images before it (R - 1) / (N - 1). The mean over all ranks is exact.
        """
        n = len(self.positives)
        right = self.positives.sum(axis=0)
        # A right image at rank k counts itself, a share of 1/k, and the others in proportion to their frequency.
        itself = np.mean(1 / np.arange(1, n + 1))
        others = (right[right > 0] - 1) / max(1, n - 1)
        return float(np.mean(itself + others * (1 - itself)))

    @property
    def value(self) -> float:
        """Mean average precision over the labels that occur, 0 to 1."""
        return float(np.nanmean(average_precisions(self.scores, self.positives)))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Compute the 95 % percentile bootstrap over images, shifted to be centred on the value."""
        low, high = np.quantile(self._resampled(seed), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]).clip(0, 1)
        return float(low), float(high)

    def difference(self, baseline: MeanAveragePrecision, seed: int = 0) -> Difference:
        """Compute this minus the baseline's on the same resampled images, as `paired_resamples` does.

        Raises:
            ValueError: If the two scores have different items.
        """
        if self.positives.shape != baseline.positives.shape:
            raise ValueError(
                f"expected scores of the same items, got {self.positives.shape} and {baseline.positives.shape}"
            )
        return paired_resamples(self._resampled(seed) - baseline._resampled(seed), len(self.positives))

    def _resampled(self, seed: int) -> NDArray[np.float64]:
        """Compute the mean of each resample, (R,). It is cached, since the interval and the tests share resamples.

        The means are shifted to be centred on the value. An image that is drawn twice ranks next to its copy, so
        precision is too high in every resample, and more so the rarer a label is.
        """
        if seed not in self._drawn:
            drawn = self._draw(seed)
            # Resamples repeat images, which raises average precision. The shift takes this bias away.
            self._drawn[seed] = drawn - drawn.mean() + self.value
        return self._drawn[seed]

    @cached_property
    def _drawn(self) -> dict[int, NDArray[np.float64]]:
        return {}

    def _draw(self, seed: int) -> NDArray[np.float64]:
        generator = np.random.default_rng(seed)
        n = len(self.scores)
        means = []
        rows = max(1, CHUNK // n)
        for start in range(0, NUM_RESAMPLES, rows):
            weights = generator.multinomial(n, np.full(n, 1 / n), size=min(rows, NUM_RESAMPLES - start))
            means.append(np.nanmean(average_precisions(self.scores, self.positives, weights), axis=1))
        return np.concatenate(means)
