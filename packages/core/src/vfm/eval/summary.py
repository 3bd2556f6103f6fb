"""Many reports as one: a score a data set, its paired test, and means over named sets.

A mean over data sets has the interval that their own errors give it, and no more: the sets are these, not a sample of
all there might be. Reports of different images are independent; those of one data set (its tasks, its languages), and
the metrics of one report (recall both ways), are taken as if they erred together: the interval is rather too wide.

Source: Zou, Huang and Zhang 2009, A note on confidence interval estimation for a linear function of binomial
proportions (MOVER): the distances of the ends are combined, each side for itself, so no interval leaves 0 to 1.
"""

# K data sets

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vfm.artifacts import Comparison, Metric, Report

Z = 1.959964  # half a 95 % interval in standard errors
TEST = "normal, sets independent"


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def p_value(self) -> float:
        """Two-sided, of zero, by the end of the interval that is on its side."""
        reach = self.value - self.low if self.value > 0 else self.high - self.value
        if not reach:
            return 1.0 if not self.value else 0.0
        return math.erfc(abs(self.value) * Z / reach / math.sqrt(2))

    @classmethod
    def together(cls, parts: Sequence[Estimate]) -> Estimate:
        """The mean of what errs together."""
        return cls(*(math.fsum(getattr(one, end) for one in parts) / len(parts) for end in ("value", "low", "high")))

    @classmethod
    def over_sets(cls, parts: Sequence[tuple[str, Estimate]]) -> Estimate:
        """The mean of estimates, each with its data set: what is of one errs together, what is of several does not."""
        value = math.fsum(one.value for _, one in parts) / len(parts)
        below: defaultdict[str, float] = defaultdict(float)
        above: defaultdict[str, float] = defaultdict(float)
        for dataset, one in parts:
            below[dataset] += one.value - one.low
            above[dataset] += one.high - one.value
        down, up = (math.hypot(*ends.values()) / len(parts) for ends in (below, above))
        return cls(value, value - down, value + up)


@dataclass(frozen=True)
class Scored:
    """The score of one report: by model, and by model what is gained on the first."""

    dataset: str
    metric: str
    num_items: int
    chance: float | None
    values: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    p_values: Mapping[str, float]
    baseline: str


def score_of(report: Report, metrics: Sequence[str]) -> Scored:
    """The mean of these metrics of a report, or its main one.

    Raises:
        KeyError: the report has no such metric.
    """
    names = list(metrics) or [report.metrics[0].name]
    by_name = {name: [one for one in report.metrics if one.name == name] for name in names}
    if lacking := [name for name, found in by_name.items() if not found]:
        raise KeyError(lacking[0])
    values, gains, p_values = {}, {}, {}
    for model in (one.model for one in by_name[names[0]]):
        values[model] = Estimate.together([_of(m) for found in by_name.values() for m in found if m.model == model])
        if tests := [one for one in report.comparisons if one.model == model and one.metric in names]:
            gains[model] = Estimate.together([_of(one) for one in tests])
            p_values[model] = tests[0].p_value if len(tests) == 1 else gains[model].p_value
    first = by_name[names[0]][0]
    chances = [found[0].chance for found in by_name.values()]
    chance = None if None in chances else math.fsum(one for one in chances if one is not None) / len(chances)
    baseline = next(iter(values))
    return Scored(report.dataset, " and ".join(names), first.n, chance, values, gains, p_values, baseline)


def mean_over(scored: Sequence[Scored], name: str) -> tuple[list[Metric], list[Comparison]]:
    """The mean score of each model that all reports judge, and its gain on the first of them."""
    models = [model for model in scored[0].values if all(model in one.values for one in scored)]
    n = sum({one.dataset: one.num_items for one in scored}.values())
    metrics, comparisons = [], []
    for model in models:
        mean = Estimate.over_sets([(one.dataset, one.values[model]) for one in scored])
        metrics.append(Metric(name=name, value=mean.value, n=n, low=mean.low, high=mean.high, model=model))
        baselines = {one.baseline for one in scored}
        if len(baselines) == 1 and all(model in one.gains for one in scored):
            gain = Estimate.over_sets([(one.dataset, one.gains[model]) for one in scored])
            comparisons.append(
                Comparison(
                    metric=name,
                    model=model,
                    baseline=scored[0].baseline,
                    difference=gain.value,
                    low=gain.low,
                    high=gain.high,
                    p_value=gain.p_value,
                    test=TEST,
                )
            )
    return metrics, comparisons


def _of(one: Metric | Comparison) -> Estimate:
    return Estimate(one.value if isinstance(one, Metric) else one.difference, one.low, one.high)
