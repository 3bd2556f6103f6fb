"""Show many reports as one table, with a score and paired test per dataset and means over groups of datasets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vfm.base import UserError, change, did_you_mean, interval, p_value as p_words, quantity
from vfm.eval.compare.stages import ReportSummary, SummarisedReport
from vfm.eval.compare.summary_scores import ReportScore, mean_over, score_of
from vfm.interfaces import Comparison, Context, Metric, Report, TablePanel
from vfm.statistics import holm

Cells = list[str | float | int | None]


def summarise(config: ReportSummary, ctx: Context) -> Report:
    """Write the table at the top of the page. The metrics of the report are the means."""
    scored: list[tuple[SummarisedReport, ReportScore]] = []
    rows: list[tuple[str, str, ReportScore]] = []
    for entry in config.scores:
        report = ctx.load(entry.report)
        try:
            score = score_of(report, entry.metrics)
        except KeyError as error:
            known = [metric.name for metric in report.metrics]
            hint = did_you_mean(str(error.args[0]), known)
            raise UserError(f"{entry.report} has no metric {error}{hint}") from None
        scored.append((entry, score))
        rows.append((entry.title or str(entry.report), report.task, score))
    metrics: list[Metric] = []
    tests: list[Comparison] = []
    # One mean for each way of evaluation and group of datasets, and one over all groups.
    for way, group in _averaged(config):
        counted = []
        datasets = set()
        for entry, score in scored:
            if entry.group and entry.way == way and group in (entry.group, None):
                counted.append(score)
                datasets.add(score.dataset)
        num_all = len(datasets) + _num_missing(config, way, group)
        name = ", ".join(filter(None, (group or "all groups", way)))
        means, gains = mean_over(counted, f"mean of {name}: {len(datasets)} of {num_all} sets")
        metrics += means
        tests += gains
    ctx.panel(_table(rows, metrics, tests))
    if config.missing:
        ctx.panel(_left_out(config))
    main = list(dict.fromkeys(metric.name for metric in metrics))
    return Report.create(
        ctx.directory, task="summary", dataset=config.name, metrics=metrics, comparisons=tests, main=main
    )


def _averaged(config: ReportSummary) -> list[tuple[str, str | None]]:
    """List the means as (way, group). A way with several groups also has a mean over all of them (None)."""
    groups_by_way: dict[str, list[str]] = {}
    for entry in config.scores:
        groups = groups_by_way.setdefault(entry.way, [])
        if entry.group and entry.group not in groups:
            groups.append(entry.group)
    means: list[tuple[str, str | None]] = []
    for way, groups in groups_by_way.items():
        for group in groups:
            means.append((way, group))
        if len(groups) > 1:
            means.append((way, None))
    return means


def _num_missing(config: ReportSummary, way: str, group: str | None) -> int:
    count = 0
    for gap in config.missing:
        in_group = gap.group and group in (gap.group, None)
        if in_group and (not gap.ways or way in gap.ways):
            count += 1
    return count


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
    models: dict[str, None] = {}
    models_with_gain: set[str] = set()
    for _, _, scored in sorted(rows, key=lambda row: -len(row[2].values)):
        models.update(dict.fromkeys(scored.values))
        models_with_gain.update(scored.gains)
    first = next(iter(models))
    others = [model for model in models if model in models_with_gain]
    rows, tests, num_tests = _corrected(rows, tests)
    cells: list[Cells] = []
    for title, task, scored in rows:
        chance = None if scored.chance is None else quantity(scored.chance, "share")
        on = "" if scored.baseline == first else f" on {scored.baseline}"
        values = {}
        for model, value in scored.values.items():
            values[model] = _cell(value.value, value.low, value.high)
        gains = {}
        for model, gain in scored.gains.items():
            gains[model] = _gain(gain.value, scored.p_values[model], on)
        facts: Cells = [title, task, scored.metric, scored.num_items, chance]
        cells.append([*facts, *_of_models(values, models), *_of_models(gains, others)])
    num_items: dict[str, int] = {}
    values_of_means: defaultdict[str, dict[str, str]] = defaultdict(dict)
    gains_of_means: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for mean in means:
        num_items.setdefault(mean.name, mean.n)
        values_of_means[mean.name][mean.model] = _cell(mean.value, mean.low, mean.high)
    for test in tests:
        on = "" if test.baseline == first else f" on {test.baseline}"
        gains_of_means[test.metric][test.model] = _gain(test.difference, test.p_value, on)
    for name, n in num_items.items():
        values, gains = values_of_means[name], gains_of_means[name]
        cells.append([name, "", "", n, None, *_of_models(values, models), *_of_models(gains, others)])
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
    for test in tests:
        raw.append(test.p_value)
    fixed = iter(holm(raw).tolist())
    corrected_rows = []
    for title, task, scored in rows:
        p_values = dict(zip(scored.p_values, fixed, strict=False))  # the rest belongs to later rows
        corrected_rows.append((title, task, replace(scored, p_values=p_values)))
    corrected_tests = [test.model_copy(update={"p_value": next(fixed)}) for test in tests]
    return corrected_rows, corrected_tests, len(raw)


def _of_models(cells: Mapping[str, str], models: Iterable[str]) -> list[str]:
    """List the cells of models in their order, with a dash for a model that has none."""
    return [cells.get(model, "–") for model in models]


def _cell(value: float, low: float, high: float) -> str:
    return f"{quantity(value, 'share')} ({interval(low, high, 'share')})"


def _gain(value: float, p_value: float, on: str = "") -> str:
    return f"{change(value, 'share')}{on}, p {p_words(p_value)}"
