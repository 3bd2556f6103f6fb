"""Many reports as one table: a score per dataset with its paired test, and means over named groups of datasets.

The interval of a mean over datasets covers the errors of their scores and no more: the datasets are fixed, not a
sample of all that might exist. Reports on different images are independent; those on one dataset (its tasks, its
languages) and the metrics of one report (recall both ways) count as completely dependent, so the interval is rather too
wide.

Source: Zou, Huang and Zhang 2009, A note on confidence interval estimation for a linear function of binomial
proportions (MOVER): the distances of each end are combined separately, so no interval leaves 0 to 1.
"""

# K datasets

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vfm.base import UserError, change, did_you_mean, interval, p_value as p_words, quantity
from vfm.eval.compare.stages import SummarisedReport, Summary
from vfm.interfaces import Comparison, Context, Metric, Report, TablePanel
from vfm.statistics import holm

Cells = list[str | float | int | None]
Z = 1.959964  # half the width of a 95 % interval, in standard errors
TEST = "normal, sets independent"


def summarise(config: Summary, ctx: Context) -> Report:
    """Write the table at the top of the page; the metrics of the report are the means."""
    found: list[tuple[SummarisedReport, str, ReportScore]] = []
    for one in config.scores:
        report = ctx.load(one.report)
        try:
            found.append((one, report.task, score_of(report, one.metrics)))
        except KeyError as error:
            known = [metric.name for metric in report.metrics]
            raise UserError(f"{one.report} has no metric {error}{did_you_mean(str(error.args[0]), known)}") from None
    metrics: list[Metric] = []
    tests: list[Comparison] = []
    for way, group in _averaged(config):
        counted = [score for one, _, score in found if one.group and one.way == way and group in (one.group, None)]
        num_sets = len({score.dataset for score in counted})
        name = f"mean of {', '.join(part for part in (group or 'all groups', way) if part)}"
        means, gains = mean_over(counted, f"{name}: {num_sets} of {num_sets + _num_missing(config, way, group)} sets")
        metrics += means
        tests += gains
    rows = [(one.title or str(one.report), task, score) for one, task, score in found]
    ctx.panel(_table(rows, metrics, tests))
    if config.missing:
        ctx.panel(_left_out(config))
    return Report.create(ctx.directory, task="summary", dataset=config.name, metrics=metrics, comparisons=tests)


def _averaged(config: Summary) -> list[tuple[str, str | None]]:
    """Return what is averaged: each group in each way, and for a way with several groups all of them (None)."""
    means: list[tuple[str, str | None]] = []
    for way in dict.fromkeys(one.way for one in config.scores):
        groups = list(dict.fromkeys(one.group for one in config.scores if one.group and one.way == way))
        means += [(way, group) for group in [*groups, *([None] if len(groups) > 1 else [])]]
    return means


def _num_missing(config: Summary, way: str, group: str | None) -> int:
    gaps = [gap for gap in config.missing if gap.group and group in (gap.group, None)]
    return sum(not gap.ways or way in gap.ways for gap in gaps)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def p_value(self) -> float:
        """Two-sided p-value of zero, from the side of the interval that faces zero."""
        width = self.value - self.low if self.value > 0 else self.high - self.value
        if not width:
            return 1.0 if not self.value else 0.0
        return math.erfc(abs(self.value) * Z / width / math.sqrt(2))

    @classmethod
    def together(cls, parts: Sequence[Estimate]) -> Estimate:
        """Return the mean of estimates that depend on each other completely: their intervals are averaged."""
        return cls(*(math.fsum(getattr(one, end) for one in parts) / len(parts) for end in ("value", "low", "high")))

    @classmethod
    def over_sets(cls, parts: Sequence[tuple[str, Estimate]]) -> Estimate:
        """Return the mean of estimates, each with its dataset; estimates of different datasets are independent."""
        value = math.fsum(one.value for _, one in parts) / len(parts)
        below: defaultdict[str, float] = defaultdict(float)
        above: defaultdict[str, float] = defaultdict(float)
        for dataset, one in parts:
            below[dataset] += one.value - one.low
            above[dataset] += one.high - one.value
        down, up = (math.hypot(*ends.values()) / len(parts) for ends in (below, above))
        return cls(value, value - down, value + up)


@dataclass(frozen=True)
class ReportScore:
    """The score of one report: the value of each model, and the gain of each later model over the first."""

    dataset: str
    metric: str
    num_items: int
    chance: float | None
    values: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    p_values: Mapping[str, float]
    baseline: str


def score_of(report: Report, metrics: Sequence[str]) -> ReportScore:
    """Return the mean of the metrics of a report, or its main one.

    Raises:
        KeyError: the report has no such metric.
    """
    names = list(metrics) or [report.metrics[0].name]
    by_name = {name: [one for one in report.metrics if one.name == name] for name in names}
    if missing := [name for name, found in by_name.items() if not found]:
        raise KeyError(missing[0])
    values, gains, p_values = {}, {}, {}
    for model in (one.model for one in by_name[names[0]]):
        values[model] = Estimate.together(
            [_estimate(m) for found in by_name.values() for m in found if m.model == model]
        )
        if tests := [one for one in report.comparisons if one.model == model and one.metric in names]:
            gains[model] = Estimate.together([_estimate(one) for one in tests])
            p_values[model] = tests[0].p_value if len(tests) == 1 else gains[model].p_value
    first = by_name[names[0]][0]
    chances = [found[0].chance for found in by_name.values()]
    chance = None if None in chances else math.fsum(one for one in chances if one is not None) / len(chances)
    baseline = next(iter(values))
    return ReportScore(report.dataset, " and ".join(names), first.n, chance, values, gains, p_values, baseline)


def mean_over(scored: Sequence[ReportScore], name: str) -> tuple[list[Metric], list[Comparison]]:
    """Return the mean score of each model that is in all reports, and its gain over the first model."""
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


def _estimate(one: Metric | Comparison) -> Estimate:
    return Estimate(one.value if isinstance(one, Metric) else one.difference, one.low, one.high)


def _left_out(config: Summary) -> TablePanel:
    columns = ["what", "group", "why"] if any(gap.group for gap in config.missing) else ["what", "why"]
    rows: list[Cells] = [[{"what": gap.title, **vars(gap)}[name] for name in columns] for gap in config.missing]
    note = "These data sets were requested, and are in no mean above."
    return TablePanel(title="Left out", note=note, order=11, front=True, columns=columns, rows=rows)


def _table(
    rows: Sequence[tuple[str, str, ReportScore]], means: Sequence[Metric], tests: Sequence[Comparison]
) -> TablePanel:
    """Return the table: a row per report, then the means; a column per model, and one for its gain over the first."""
    # A report of all models has them in the order of the recipe; one without the first model has not.
    by_size = sorted((scored for _, _, scored in rows), key=lambda scored: -len(scored.values))
    models = list(dict.fromkeys(model for scored in by_size for model in scored.values))
    first = models[0]
    others = [model for model in models if any(model in scored.gains for _, _, scored in rows)]
    rows, tests, num_tests = _corrected(rows, tests)
    cells: list[Cells] = []
    for title, task, scored in rows:
        values = [_value(scored.values[model]) if model in scored.values else "–" for model in models]
        on = "" if scored.baseline == first else f" on {scored.baseline}"
        gains = [_gain(scored.gains[m].value, scored.p_values[m], on) if m in scored.gains else "–" for m in others]
        chance = None if scored.chance is None else quantity(scored.chance, "share")
        cells.append([title, task, scored.metric, scored.num_items, chance, *values, *gains])
    for name in dict.fromkeys(one.name for one in means):
        by_model = {one.model: _cell(one.value, one.low, one.high) for one in means if one.name == name}
        by_gain = {
            one.model: _gain(one.difference, one.p_value, "" if one.baseline == first else f" on {one.baseline}")
            for one in tests
            if one.metric == name
        }
        n = next(one.n for one in means if one.name == name)
        cells.append(
            [name, "", "", n, None, *(by_model.get(m, "–") for m in models), *(by_gain.get(m, "–") for m in others)]
        )
    note = "With 95 % intervals. A mean is over the models that were evaluated on all its data sets."
    if others:
        note += (
            f" Differences from {first} on the same items in percentage points; their p-values are corrected for the"
            f" {num_tests} comparisons of this table (Holm), and say whether two models differ, not what a method does."
        )
    columns = ["data set", "task", "metric", "n", "chance", *models, *(f"{model} over {first}" for model in others)]
    return TablePanel(title="All data sets", note=note, order=10, front=True, columns=columns, rows=cells)


def _corrected(
    rows: Sequence[tuple[str, str, ReportScore]], tests: Sequence[Comparison]
) -> tuple[list[tuple[str, str, ReportScore]], list[Comparison], int]:
    """Return the rows and the tests of the means with p-values corrected for their number, and this number."""
    raw = [p_value for _, _, scored in rows for p_value in scored.p_values.values()]
    raw += [test.p_value for test in tests]
    fixed = iter(holm(raw).tolist())
    return (
        [
            (title, task, replace(scored, p_values={model: next(fixed) for model in scored.p_values}))
            for title, task, scored in rows
        ],
        [test.model_copy(update={"p_value": next(fixed)}) for test in tests],
        len(raw),
    )


def _value(one: Estimate) -> str:
    return _cell(one.value, one.low, one.high)


def _cell(value: float, low: float, high: float) -> str:
    return f"{quantity(value, 'share')} ({interval(low, high, 'share')})"


def _gain(value: float, p_value: float, on: str = "") -> str:
    return f"{change(value, 'share')}{on}, p {p_words(p_value)}"
