"""Show many reports as one table, with a score and paired test per dataset and means over groups of datasets.

The interval of a mean over datasets covers only the errors of their scores, since the datasets are fixed and not a
sample of all possible datasets. Reports on different images are independent. Reports on the same dataset (several
tasks or languages) and metrics of the same report (recall in both directions) count as completely dependent, so the
interval is conservative.

Source: Zou, Huang and Zhang 2009, A note on confidence interval estimation for a linear function of binomial
proportions (MOVER): the distances of each end are combined separately, so no interval leaves 0 to 1.
"""

# K datasets

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from vfm.base import UserError, change, did_you_mean, interval, p_value as p_words, quantity
from vfm.eval.compare.stages import ReportSummary, SummarisedReport
from vfm.interfaces import Comparison, Context, Metric, Report, TablePanel
from vfm.statistics import holm

Cells = list[str | float | int | None]
Z = 1.959964  # half the width of a 95 % interval, in standard errors
TEST = "normal, sets independent"


def summarise(config: ReportSummary, ctx: Context) -> Report:
    """Write the table at the top of the page. The metrics of the report are the means."""
    scored: list[tuple[SummarisedReport, str, ReportScore]] = []
    for entry in config.scores:
        report = ctx.load(entry.report)
        try:
            scored.append((entry, report.task, score_of(report, entry.metrics)))
        except KeyError as error:
            known = [metric.name for metric in report.metrics]
            hint = did_you_mean(str(error.args[0]), known)
            raise UserError(f"{entry.report} has no metric {error}{hint}") from None
    metrics: list[Metric] = []
    tests: list[Comparison] = []
    # One mean for each way of evaluation and group of datasets, and one over all groups.
    for way, group in _averaged(config):
        counted = []
        for entry, _, score in scored:
            if entry.group and entry.way == way and group in (entry.group, None):
                counted.append(score)
        num_sets = len({score.dataset for score in counted})
        num_all = num_sets + _num_missing(config, way, group)
        name = ", ".join(part for part in (group or "all groups", way) if part)
        means, gains = mean_over(counted, f"mean of {name}: {num_sets} of {num_all} sets")
        metrics += means
        tests += gains
    rows = [(entry.title or str(entry.report), task, score) for entry, task, score in scored]
    ctx.panel(_table(rows, metrics, tests))
    if config.missing:
        ctx.panel(_left_out(config))
    main = list(dict.fromkeys(metric.name for metric in metrics))
    return Report.create(
        ctx.directory, task="summary", dataset=config.name, metrics=metrics, comparisons=tests, main=main
    )


def _averaged(config: ReportSummary) -> list[tuple[str, str | None]]:
    """List the means as (way, group). A way with several groups also has a mean over all of them (None)."""
    means: list[tuple[str, str | None]] = []
    for way in dict.fromkeys(entry.way for entry in config.scores):
        groups = list(dict.fromkeys(entry.group for entry in config.scores if entry.group and entry.way == way))
        means += [(way, group) for group in groups]
        if len(groups) > 1:
            means.append((way, None))
    return means


def _num_missing(config: ReportSummary, way: str, group: str | None) -> int:
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
        # Intervals may be asymmetric, and only the side towards zero decides.
        width = self.value - self.low if self.value > 0 else self.high - self.value
        if not width:
            return 1.0 if not self.value else 0.0
        return math.erfc(abs(self.value) * Z / width / math.sqrt(2))

    @classmethod
    def together(cls, parts: Sequence[Estimate]) -> Estimate:
        """Average estimates that depend on each other completely, including the ends of their intervals."""
        value = math.fsum(part.value for part in parts) / len(parts)
        low = math.fsum(part.low for part in parts) / len(parts)
        high = math.fsum(part.high for part in parts) / len(parts)
        return cls(value, low, high)

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
    for name in names:
        by_name[name] = [metric for metric in report.metrics if metric.name == name]
        if not by_name[name]:
            raise KeyError(name)
    values = {}
    gains = {}
    p_values = {}
    for model in (metric.model for metric in by_name[names[0]]):
        estimates = []
        for metrics_of_name in by_name.values():
            estimates += [_estimate(metric) for metric in metrics_of_name if metric.model == model]
        values[model] = Estimate.together(estimates)
        tests = [test for test in report.comparisons if test.model == model and test.metric in names]
        if tests:
            gains[model] = Estimate.together([_estimate(test) for test in tests])
            # The test of a single metric is exact; the mean of several only has an interval.
            p_values[model] = tests[0].p_value if len(tests) == 1 else gains[model].p_value
    first = by_name[names[0]][0]
    chances = [metrics_of_name[0].chance for metrics_of_name in by_name.values()]
    known = [chance for chance in chances if chance is not None]
    chance = math.fsum(known) / len(chances) if len(known) == len(chances) else None
    baseline = next(iter(values))
    return ReportScore(report.dataset, " and ".join(names), first.n, chance, values, gains, p_values, baseline)


def mean_over(scored: Sequence[ReportScore], name: str) -> tuple[list[Metric], list[Comparison]]:
    """Average the score of each model that is in all reports, and its gain over the first model."""
    models = [model for model in scored[0].values if all(model in report.values for report in scored)]
    n = sum({report.dataset: report.num_items for report in scored}.values())
    metrics = []
    comparisons = []
    for model in models:
        mean = Estimate.over_sets([(report.dataset, report.values[model]) for report in scored])
        metrics.append(Metric(name=name, value=mean.value, n=n, low=mean.low, high=mean.high, model=model))
        baselines = {report.baseline for report in scored}
        if len(baselines) == 1 and all(model in report.gains for report in scored):
            gain = Estimate.over_sets([(report.dataset, report.gains[model]) for report in scored])
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


def _left_out(config: ReportSummary) -> TablePanel:
    if any(gap.group for gap in config.missing):
        columns = ["what", "group", "why"]
    else:
        columns = ["what", "why"]
    rows: list[Cells] = []
    for gap in config.missing:
        cells = {"what": gap.title, **vars(gap)}
        rows.append([cells[name] for name in columns])
    note = "These data sets were requested, and are in no mean above."
    return TablePanel(title="Left out", note=note, order=11, front=True, columns=columns, rows=rows)


def _table(
    rows: Sequence[tuple[str, str, ReportScore]], means: Sequence[Metric], tests: Sequence[Comparison]
) -> TablePanel:
    """Build the table of reports and means.

    It has rows for reports, then means, and columns for models, then their gains over the first one.
    """
    # Begin with the reports of most models, since only a report of all models has them in the order of the recipe.
    by_size = sorted((scored for _, _, scored in rows), key=lambda scored: -len(scored.values))
    models = list(dict.fromkeys(chain.from_iterable(scored.values for scored in by_size)))
    first = models[0]
    models_with_gain = set(chain.from_iterable(scored.gains for scored in by_size))
    others = [model for model in models if model in models_with_gain]
    rows, tests, num_tests = _corrected(rows, tests)
    cells: list[Cells] = []
    for title, task, scored in rows:
        values = [_value(scored.values[model]) if model in scored.values else "–" for model in models]
        on = "" if scored.baseline == first else f" on {scored.baseline}"
        gains = [_gain(scored.gains[m].value, scored.p_values[m], on) if m in scored.gains else "–" for m in others]
        chance = None if scored.chance is None else quantity(scored.chance, "share")
        cells.append([title, task, scored.metric, scored.num_items, chance, *values, *gains])
    for name in dict.fromkeys(mean.name for mean in means):
        means_of_name = [mean for mean in means if mean.name == name]
        by_model = {mean.model: _cell(mean.value, mean.low, mean.high) for mean in means_of_name}
        by_gain = {}
        for test in tests:
            if test.metric == name:
                on = "" if test.baseline == first else f" on {test.baseline}"
                by_gain[test.model] = _gain(test.difference, test.p_value, on)
        values = [by_model.get(model, "–") for model in models]
        gains = [by_gain.get(model, "–") for model in others]
        cells.append([name, "", "", means_of_name[0].n, None, *values, *gains])
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
    """Correct the p-values of the rows and of the means for the number of tests. Also return this number."""
    raw: list[float] = []
    for _, _, scored in rows:
        raw += scored.p_values.values()
    raw += [test.p_value for test in tests]
    fixed = iter(holm(raw).tolist())
    corrected_rows = []
    for title, task, scored in rows:
        p_values = {model: next(fixed) for model in scored.p_values}
        corrected_rows.append((title, task, replace(scored, p_values=p_values)))
    corrected_tests = [test.model_copy(update={"p_value": next(fixed)}) for test in tests]
    return corrected_rows, corrected_tests, len(raw)


def _value(estimate: Estimate) -> str:
    return _cell(estimate.value, estimate.low, estimate.high)


def _cell(value: float, low: float, high: float) -> str:
    return f"{quantity(value, 'share')} ({interval(low, high, 'share')})"


def _gain(value: float, p_value: float, on: str = "") -> str:
    return f"{change(value, 'share')}{on}, p {p_words(p_value)}"
