"""Accuracy with its interval and paired test, and the record of any score in a report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfm.interfaces import Comparison, Difference, Metric, Score
from vfm.statistics.intervals import grouped_interval, mean_per_class_interval, stratified_mean, wilson_interval
from vfm.statistics.paired import mcnemar_exact, newcombe_interval, sign_flip_p


@dataclass(frozen=True)
class Accuracy:
    """Fraction of the items that a model got right, or the mean of this fraction over classes.

    Args:
        metric: Name of the metric, such as `acc1`.
        correct: Right or wrong, (N,).
        groups: Image of each item, (N,), if an image has several captions, so that items are not independent.
        classes: Class of each item, (N,), if the score is the mean over classes.
        chance: Expected fraction of a random guess.
    """

    metric: str
    correct: NDArray[np.bool_]
    groups: NDArray[np.int64] | None = None
    classes: NDArray[np.int64] | None = None
    chance: float | None = None

    @property
    def num_independent(self) -> int:
        """Number of items, or of images if an image has several items."""
        if self.groups is None:
            return len(self.correct)
        return len(np.unique(self.groups))

    @property
    def independent(self) -> bool:
        """True if the score is a plain fraction of independent items."""
        return self.classes is None and self.num_independent == len(self.correct)

    @property
    def value(self) -> float:
        """Fraction of right items, 0 to 1."""
        return stratified_mean(self.correct, self.classes)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Compute the 95 % interval of the score.

        It is Wilson's, adapted for grouped items and for means over classes.
        """
        if self.classes is not None:
            return mean_per_class_interval(self.correct, self.classes)
        if self.groups is not None and not self.independent:
            return grouped_interval(self.correct, self.groups)
        return wilson_interval(int(self.correct.sum()), len(self.correct))

    def difference(self, baseline: Accuracy, seed: int = 0) -> Difference:
        """Compute this score minus the baseline's on the same items.

        The interval is Newcombe's paired interval. Independent items get exact McNemar's p-value. For grouped items and
        means over classes, McNemar would count several captions of an image as independent, and give the images of all
        classes the same weight. They get the p-value of sign flips, of whole images or of items with the weight of
        their class.

        Args:
            baseline: Score of the other model.
            seed: Seed of the sign flips.
        """
        before = baseline.correct
        after = self.correct
        groups = baseline.groups
        classes = baseline.classes
        low, high = newcombe_interval(before, after, groups, strata=classes)
        if baseline.independent:
            return Difference(low, high, mcnemar_exact(before, after).p_value, "exact McNemar")
        return Difference(low, high, sign_flip_p(before, after, groups, strata=classes, seed=seed), "sign flips")


def to_metric(score: Score, *, model: str = "", seed: int = 0) -> Metric:
    """Convert a score to the record of a report.

    Args:
        score: The score.
        model: Name of the model.
        seed: Seed of a bootstrap.

    Returns:
        The value, n (independent items) and the 95 % interval.
    """
    low, high = score.interval(seed)
    return Metric(
        name=score.metric,
        value=score.value,
        n=score.num_independent,
        low=low,
        high=high,
        model=model,
        chance=score.chance,
    )


def compare(first: Score, second: Score, *, baseline: str, model: str, seed: int = 0) -> Comparison:
    """Compare two scores on the same items.

    Args:
        first: Score of the baseline.
        second: Score of the model.
        baseline: Name of the baseline.
        model: Name of the model.
        seed: Seed of the test.

    Returns:
        Second minus first, with interval and p-value of the paired test.

    Raises:
        ValueError: If the metrics or the items differ.
    """
    if first.metric != second.metric:
        raise ValueError(f"expected two scores of one metric, got {first.metric} and {second.metric}")
    difference = second.difference(first, seed)
    return Comparison(
        metric=first.metric,
        model=model,
        baseline=baseline,
        difference=second.value - first.value,
        low=difference.low,
        high=difference.high,
        p_value=difference.p_value,
        test=difference.test,
    )
