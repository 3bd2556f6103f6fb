"""Mean average precision where an image has several labels, and how sure it is: a bootstrap over images."""

# N images, C labels, R resamples

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vfm.eval.compare import Difference
from vfm.eval.statistics import CONFIDENCE

NUM_RESAMPLES = 1000  # each sorts nothing anew, but sums over all images of every label
CHUNK = 4_000_000  # weights held at once: 32 MB


def average_precisions(
    scores: NDArray[np.floating], positives: NDArray[np.bool_], weights: NDArray[np.number] | None = None
) -> NDArray[np.float64]:
    """Average precision of each label: the mean, over its images, of the precision where each one stands.

    Images of one score stand in one place; a NaN stands last. NaN for a label that no image (of any weight) has.

    Args:
        scores: of each label for each image, (N, C).
        positives: which labels an image has, (N, C).
        weights: how often each image counts, (R, N); default: once.

    Returns:
        (C,), or (R, C) with weights.

    Source: Manning, Raghavan and Schütze 2008, Introduction to information retrieval, 8.4; as scikit-learn has it.
    """
    table = np.ones((1, len(scores))) if weights is None else np.asarray(weights, dtype=np.float64)
    columns = [_average_precision(scores[:, c], positives[:, c], table) for c in range(scores.shape[1])]
    found = np.stack(columns, axis=1)
    return found[0] if weights is None else found


def _average_precision(
    scores: NDArray[np.floating], positives: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    known = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-known, kind="stable")
    ranked = known[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last of each run of equal scores
    places = ends[np.searchsorted(ends, np.arange(len(ranked)))]
    counted = weights[:, order]
    right = counted * positives[order]
    seen = np.maximum(np.cumsum(counted, axis=1)[:, places], 1e-300)  # nothing of weight yet: nothing is added either
    precision = np.cumsum(right, axis=1)[:, places] / seen
    total = right.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: NDArray[np.float64] = (right * precision).sum(axis=1) / total
    return shares


@dataclass(frozen=True)
class RankingVerdict:
    """What a model said of each label for each image: what mean average precision and its tests are made of.

    Args:
        metric: its name, such as `lp_map`.
        scores: (N, C).
        positives: which labels an image has, (N, C).
    """

    metric: str
    scores: NDArray[np.floating]
    positives: NDArray[np.bool_]

    @property
    def num_independent(self) -> int:
        """Images."""
        return len(self.scores)

    @property
    def chance(self) -> float:
        """What scores without any knowledge get on average, the mean over the labels that occur.

        It is more than the share R / N of images that have a label: an image that has it counts itself where it stands.
        At place i that is 1, and (R - 1) / (N - 1) for each of the i - 1 before it; the mean over all places is exact.
        """
        n, right = len(self.positives), self.positives.sum(axis=0)
        own = np.mean(1 / np.arange(1, n + 1))
        return float(np.mean(own + (right[right > 0] - 1) / max(1, n - 1) * (1 - own)))

    @property
    def value(self) -> float:
        """Mean average precision over the labels that occur, 0 to 1."""
        return float(np.nanmean(average_precisions(self.scores, self.positives)))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap over images, 95 %, moved to lie about the value."""
        low, high = np.quantile(self._resampled(seed), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]).clip(0, 1)
        return float(low), float(high)

    def difference(self, baseline: RankingVerdict, seed: int = 0) -> Difference:
        """This minus the baseline's, both on the same resampled images; p is twice the share on the wrong side of 0."""
        if self.positives.shape != baseline.positives.shape:
            raise ValueError(f"needed are the same items twice, got {self.positives.shape}, {baseline.positives.shape}")
        gaps = self._resampled(seed) - baseline._resampled(seed)
        low, high = np.quantile(gaps, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
        beyond = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
        return Difference(float(low), float(high), min(1.0, 2 * (1 + beyond) / (1 + len(gaps))), "paired bootstrap")

    def _resampled(self, seed: int) -> NDArray[np.float64]:
        """The mean of each resample, (R,); kept, since interval and tests want the same.

        They are moved to lie about the value: an image that is drawn twice stands beside its own copy, so precision is
        too high in every resample, and the more so the rarer a label is.
        """
        if seed not in self._drawn:
            drawn = self._draw(seed)
            self._drawn[seed] = drawn - drawn.mean() + self.value
        return self._drawn[seed]

    @cached_property
    def _drawn(self) -> dict[int, NDArray[np.float64]]:
        return {}

    def _draw(self, seed: int) -> NDArray[np.float64]:
        generator, n = np.random.default_rng(seed), len(self.scores)
        means = []
        for start in range(0, NUM_RESAMPLES, rows := max(1, CHUNK // n)):
            weights = generator.multinomial(n, np.full(n, 1 / n), size=min(rows, NUM_RESAMPLES - start))
            means.append(np.nanmean(average_precisions(self.scores, self.positives, weights), axis=1))
        return np.concatenate(means)
