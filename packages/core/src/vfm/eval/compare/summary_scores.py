"""Scores of reports, paired tests of their models, and means of both over datasets.

The interval of a mean over datasets covers only the errors of their scores, since the datasets are fixed and not a
sample of all possible datasets. Reports on different images are independent. Reports on the same dataset (several
tasks or languages) and metrics of the same report (recall in both directions) count as completely dependent, so the
interval is conservative.

Source: Zou, Huang and Zhang 2009, A note on confidence interval estimation for a linear function of binomial
proportions (MOVER): the distances of each end are combined separately, so no interval leaves 0 to 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from vfm.interfaces import Comparison, Metric, Report

Z = 1.959964  # half the width of a 95 % interval, in standard errors
TEST = "normal, sets independent"


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def p_value(self) -> float:
        """Two-sided p-value of zero, from the side of the interval that faces zero."""
        # Intervals may be asymmetric, and only the side towards zero decides.
        width = self.value - self.low if self.value > 0 else self.high - self.value
        if not width:
            return 1.0 if not self.value else 0.0
        return math.erfc(abs(self.value) * Z / width / math.sqrt(2))

    @classmethod
    def together(cls, parts: Sequence[Estimate]) -> Estimate:
        """Average estimates that depend on each other completely, including the ends of their intervals."""
        values, lows, highs = zip(*map(astuple, parts), strict=True)
        num = len(parts)
        return cls(math.fsum(values) / num, math.fsum(lows) / num, math.fsum(highs) / num)

    @classmethod
    def over_sets(cls, parts: Sequence[tuple[str, Estimate]]) -> Estimate:
        """Average estimates, each with its dataset. Estimates for different datasets are independent."""
        value = math.fsum(estimate.value for _, estimate in parts) / len(parts)
        below: defaultdict[str, float] = defaultdict(float)
        above: defaultdict[str, float] = defaultdict(float)
        for dataset, estimate in parts:
            below[dataset] += estimate.value - estimate.low
            above[dataset] += estimate.high - estimate.value
        down = math.hypot(*below.values()) / len(parts)
        up = math.hypot(*above.values()) / len(parts)
        return cls(value, value - down, value + up)


@dataclass(frozen=True)
class ReportScore:
    """The score in one report.

    It has the value of each model, and the gain of each later model over the first.
    """

    dataset: str
    metric: str
    num_items: int
    chance: float | None
    values: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    p_values: Mapping[str, float]
    baseline: str


def score_of(report: Report, metrics: Sequence[str]) -> ReportScore:
    """Average some metrics of a report, or take its main metric.

    Raises:
        KeyError: If the report has no such metric.
    """
    names = list(metrics) or [report.metrics[0].name]
    by_name = {}
    chances: list[float] = []
    estimates: defaultdict[str, list[Estimate]] = defaultdict(list)
    for name in names:
        by_name[name] = [metric for metric in report.metrics if metric.name == name]
        if not by_name[name]:
            raise KeyError(name)
    for metrics_of_name in by_name.values():
        if metrics_of_name[0].chance is not None:
            chances.append(metrics_of_name[0].chance)
        for metric in metrics_of_name:
            estimates[metric.model].append(_estimate(metric))
    tests: defaultdict[str, list[Comparison]] = defaultdict(list)
    for test in report.comparisons:
        if test.metric in names:
            tests[test.model].append(test)
    values = {}
    gains = {}
    p_values = {}
    for metric in by_name[names[0]]:
        model = metric.model
        values[model] = Estimate.together(estimates[model])
        if model in tests:
            gains[model] = Estimate.together(list(map(_estimate, tests[model])))
            # The test of a single metric is exact; the mean of several only has an interval.
            p_values[model] = tests[model][0].p_value if len(tests[model]) == 1 else gains[model].p_value
    first = by_name[names[0]][0]
    chance = math.fsum(chances) / len(by_name) if len(chances) == len(by_name) else None
    baseline = next(iter(values))
    return ReportScore(report.dataset, " and ".join(names), first.n, chance, values, gains, p_values, baseline)


def mean_over(scored: Sequence[ReportScore], name: str) -> tuple[list[Metric], list[Comparison]]:
    """Average the score of each model that is in all reports, and its gain over the first model."""
    num_items = {}
    baselines = set()
    values: defaultdict[str, list[tuple[str, Estimate]]] = defaultdict(list)
    gains: defaultdict[str, list[tuple[str, Estimate]]] = defaultdict(list)
    for report in scored:
        num_items[report.dataset] = report.num_items
        baselines.add(report.baseline)
        for model, value in report.values.items():
            values[model].append((report.dataset, value))
        for model, gain in report.gains.items():
            gains[model].append((report.dataset, gain))
    n = sum(num_items.values())
    metrics = []
    comparisons = []
    for model in scored[0].values:
        # Means of different datasets cannot be compared, so a model that some report lacks has none.
        if len(values[model]) < len(scored):
            continue
        mean = Estimate.over_sets(values[model])
        metrics.append(Metric(name=name, value=mean.value, n=n, low=mean.low, high=mean.high, model=model))
        if len(baselines) == 1 and len(gains[model]) == len(scored):
            gain = Estimate.over_sets(gains[model])
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


def _estimate(result: Metric | Comparison) -> Estimate:
    return Estimate(result.value if isinstance(result, Metric) else result.difference, result.low, result.high)
