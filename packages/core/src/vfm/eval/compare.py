"""Scores with their intervals, and whether a model is really better than another on the same items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vfm.artifacts import Comparison, Metric
from vfm.eval.paired import mcnemar_exact, newcombe_interval, sign_flip_p
from vfm.eval.statistics import bootstrap_interval, mean_per_class_interval, stratified_mean, wilson_interval


@dataclass(frozen=True)
class Difference:
    """How sure it is that a model differs from another: 95 % interval of the gap, p-value, and the test's name."""

    low: float
    high: float
    p_value: float
    test: str


class Scored(Protocol):
    """What a score is made of: a `Verdict`, or a `RankingVerdict` of several labels an image."""

    @property
    def metric(self) -> str:
        """The score's name, such as `acc1`."""
        ...

    @property
    def chance(self) -> float | None:
        """What a blind guess gets."""
        ...

    @property
    def value(self) -> float:
        """The score, 0 to 1."""
        ...

    @property
    def num_independent(self) -> int:
        """Items, or images where an image has several items."""
        ...

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % interval of the score."""
        ...

    def difference(self, baseline: Self, seed: int = 0) -> Difference:
        """This minus the baseline's, on the same items."""
        ...


@dataclass(frozen=True)
class Verdict:
    """Which items a model got right by one metric: what scores and paired tests are made of.

    Args:
        metric: its name, such as `acc1`.
        correct: right or wrong, (N,).
        groups: the image of each item, (N,), where an image has several captions and so items are not independent.
        classes: the class of each item, (N,), where the score is the mean over classes.
        chance: share that a blind guess gets right.
    """

    metric: str
    correct: NDArray[np.bool_]
    groups: NDArray[np.int64] | None = None
    classes: NDArray[np.int64] | None = None
    chance: float | None = None

    @property
    def num_independent(self) -> int:
        """Items, or images where an image has several items."""
        return len(self.correct) if self.groups is None else len(np.unique(self.groups))

    @property
    def independent(self) -> bool:
        """Whether the score is a plain share of independent items."""
        return self.classes is None and self.num_independent == len(self.correct)

    @property
    def value(self) -> float:
        """Share right, 0 to 1."""
        return stratified_mean(self.correct, self.classes)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % interval: Wilson's for independent items and, adapted, for means over classes; else a bootstrap."""
        if self.classes is not None:
            return mean_per_class_interval(self.correct, self.classes)
        # Where all items are alike a bootstrap has no spread and would claim certainty; Wilson's interval does not.
        if self.independent or self.correct.all() or not self.correct.any():
            return wilson_interval(round(self.value * self.num_independent), self.num_independent)
        return bootstrap_interval(self.correct, self.groups, seed=seed)

    def difference(self, baseline: Verdict, seed: int = 0) -> Difference:
        """This minus the baseline's on the same items: Newcombe's paired interval and a p-value.

        The p-value is exact McNemar's for independent items. McNemar would take captions of one image for as many
        pieces of evidence, and all classes' images for equally heavy: with several captions an image, and for means
        over classes, it is that of sign flips, of whole images or of items that weigh as their class wants it.
        """
        before, after, groups, classes = baseline.correct, self.correct, baseline.groups, baseline.classes
        low, high = newcombe_interval(before, after, groups, strata=classes)
        if baseline.independent:
            return Difference(low, high, mcnemar_exact(before, after).p_value, "exact McNemar")
        return Difference(low, high, sign_flip_p(before, after, groups, strata=classes, seed=seed), "sign flips")


def score(verdict: Scored, *, model: str = "", seed: int = 0) -> Metric:
    """The score of a verdict as a share with n (independent items) and its 95 % interval."""
    low, high = verdict.interval(seed)
    return Metric(
        name=verdict.metric,
        value=verdict.value,
        n=verdict.num_independent,
        low=low,
        high=high,
        model=model,
        chance=verdict.chance,
    )


def compare(first: Scored, second: Scored, *, baseline: str, model: str, seed: int = 0) -> Comparison:
    """Second minus first on the same items, as a share, with the interval and the p-value of their paired test.

    Raises:
        ValueError: the verdicts are not of the same metric and items.
    """
    if first.metric != second.metric:
        raise ValueError(f"only equal metrics can be compared, got {first.metric} and {second.metric}")
    found = second.difference(first, seed)
    return Comparison(
        metric=first.metric,
        model=model,
        baseline=baseline,
        difference=second.value - first.value,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        test=found.test,
    )
