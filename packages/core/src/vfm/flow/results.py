"""The numbers of a run as tables for the terminal, and their summary over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from vfm.artifacts import FACTS_FILE, Artifact, Comparison, Metric, Report
from vfm.flow.listeners import number
from vfm.flow.run import LINKS


def reports(directory: Path) -> dict[str, Report]:
    """The reports of a run by stage name, in the order of the run's stages."""
    links = sorted((directory / LINKS).iterdir(), key=lambda link: link.lstat().st_mtime_ns)
    found = {link.name: Artifact.load(link) for link in links if (link / FACTS_FILE).is_file()}
    return {name: artifact for name, artifact in found.items() if isinstance(artifact, Report)}


@dataclass(frozen=True)
class SeedSummary:
    """One metric over the seeds of a recipe: all values, their mean and its t-interval."""

    report: str
    model: str
    metric: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


def over_seeds(found: dict[str, Report]) -> list[SeedSummary]:
    """Metrics of reports of one name (`zero_shot@0`, `zero_shot@1`, ...), summarised."""
    from vfm.eval.statistics import t_interval

    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for name, report in found.items():
        if "@" not in name:
            continue
        for metric in report.metrics:
            values[name.partition("@")[0], metric.model.partition("@")[0], metric.name].append(metric.value)
    summaries = []
    for (report_name, model, metric_name), numbers in values.items():
        if len(numbers) > 1:
            low, high = t_interval(numbers)
            mean = statistics.fmean(numbers)
            summaries.append(SeedSummary(report_name, model, metric_name, tuple(numbers), mean, low, high))
    return summaries


def result_tables(directory: Path) -> Iterator[Table]:
    """What `vfm run` prints at the end: each report's metrics with interval, its paired tests, the seeds' summary."""
    found = reports(directory)
    for name, report in found.items():
        yield _metrics_table(name, report)
    summaries = over_seeds(found)
    if summaries:
        table = Table(
            "report", "model", "metric", "mean", "95 % interval", "values", title="over seeds", title_justify="left"
        )
        for summary in summaries:
            values = ", ".join(number(value) for value in summary.values)
            row = (summary.report, summary.model, summary.metric, number(summary.mean), _interval(summary), values)
            table.add_row(*row)
        yield table


def _metrics_table(name: str, report: Report) -> Table:
    title = f"{name}: {report.task} on {report.dataset}"
    table = Table(
        "model",
        "metric",
        "value",
        "95 % interval",
        "n",
        "chance",
        "against the first",
        title=title,
        title_justify="left",
    )
    tests = {(test.metric, test.model): test for test in report.comparisons}
    for metric in report.metrics:
        chance = number(metric.chance) if metric.chance is not None else ""
        test = _test(tests.get((metric.name, metric.model)))
        table.add_row(metric.model, metric.name, number(metric.value), _interval(metric), f"{metric.n:,}", chance, test)
    return table


def _interval(scored: Metric | SeedSummary) -> str:
    return f"{number(scored.low)} to {number(scored.high)}"


def _test(test: Comparison | None) -> str:
    return f"{test.difference:+.3f}, p = {number(test.p_value)} ({test.test})" if test else ""
