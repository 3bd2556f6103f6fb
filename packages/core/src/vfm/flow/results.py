"""The results of a run: its reports, their summary over seeds, and tables for the terminal."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from vfm.artifacts import Artifact, Comparison, Metric, Report
from vfm.flow import number_format
from vfm.flow.runs import RUN_FILE
from vfm.flow.store import LINKS
from vfm.integrity import read_sealed
from vfm.panels import TablePanel, load_panels


def reports(directory: Path) -> dict[str, Report]:
    """Return the reports of a finished run by stage name, in the order of its stages.

    Raises:
        UserError: the facts of an artifact are missing or damaged.
    """
    links = [directory / LINKS / name for name in read_sealed(directory / RUN_FILE, "stages")["stages"]]
    found = {link.name: Artifact.load(link, verify=False) for link in links if link.is_dir()}
    made = {name: artifact for name, artifact in found.items() if isinstance(artifact, Report)}
    for report in made.values():
        report.verify()
    return made


@dataclass(frozen=True)
class SeedSummary:
    """A metric over the seeds of a recipe: values, mean with its t-interval, and difference from the first model."""

    report: str
    model: str
    metric: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    comparison: Comparison | None = None
    unit: str = "share"


def over_seeds(found: dict[str, Report]) -> list[SeedSummary]:
    """Summarise the metrics of reports that differ in their seed only (`zero_shot@0`, `zero_shot@1`, ...)."""
    values: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    units: dict[tuple[str, str], str] = {}
    for name, report in found.items():
        stage, at, seed = name.partition("@")
        if not at:
            continue
        for metric in report.metrics:
            units[stage, metric.name] = metric.unit
            values[stage, metric.name][metric.model.partition("@")[0]][seed] = metric.value
    summaries = []
    for (report_name, metric_name), by_model in values.items():
        first = next(iter(by_model))
        for model, by_seed in by_model.items():
            if len(by_seed) > 1:
                from vfm.statistics import t_interval  # needs scipy, an optional extra

                numbers = tuple(by_seed.values())
                low, high = t_interval(numbers)
                mean = statistics.fmean(numbers)
                difference = _difference(metric_name, model, by_seed, first, by_model[first])
                unit = units[report_name, metric_name]
                summaries.append(
                    SeedSummary(report_name, model, metric_name, numbers, mean, low, high, difference, unit)
                )
    return summaries


def _difference(
    metric: str, model: str, by_seed: dict[str, float], first: str, of_first: dict[str, float]
) -> Comparison | None:
    """Compare a model with the first one over the same seeds; return None if their seeds differ."""
    if model == first or by_seed.keys() != of_first.keys():
        return None
    from vfm.statistics import paired_t  # needs scipy, an optional extra

    (low, high), p_value = paired_t([of_first[seed] for seed in by_seed], list(by_seed.values()))
    difference = statistics.fmean(by_seed.values()) - statistics.fmean(of_first.values())
    return Comparison(
        metric=metric,
        model=model,
        baseline=first,
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        test="paired t over seeds",
    )


@dataclass(frozen=True)
class MetricName:
    """A metric's name in a cell, which breaks after `_` where it is narrow, so that its number stays whole."""

    name: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines."""
        line = ""
        for part in self._parts():
            if line and len(line + part) > options.max_width:
                yield Text(line)
                line = ""
            line += part
        yield Text(line)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the smallest and the largest width."""
        return Measurement(max(map(len, self._parts())), len(self.name))

    def _parts(self) -> list[str]:
        return re.findall("[^_]*_|[^_]+$", self.name) or [self.name]


def result_tables(directory: Path) -> Iterator[Table]:
    """Yield the tables that `vfm run` prints: one per report, with intervals and paired tests, and one over seeds."""
    found = reports(directory)
    for name, report in found.items():
        yield _metrics_table(name, report)
    summaries = over_seeds(found)
    if summaries:
        heads = ("report", "model", "metric", "mean", "95 % interval", "difference from the first", "values")
        table = Table(title="over seeds", title_justify="left")
        for head in heads:
            table.add_column(head, overflow="fold")
        for summary in summaries:
            values = number_format.quantities(summary.values, summary.unit)
            difference = _test(summary.comparison, summary.unit) if summary.comparison else ""
            mean = (number_format.quantity(summary.mean, summary.unit), _interval(summary))
            table.add_row(summary.report, summary.model, summary.metric, *mean, difference, values)
        yield table


def panel_tables(artifact: Path) -> Iterator[Table]:
    """Yield the tables among the panels of an artifact."""
    for panel in load_panels(artifact):
        if isinstance(panel, TablePanel):
            table = Table(title=panel.title, caption=panel.note, title_justify="left", caption_justify="left", box=None)
            for column in panel.columns:
                table.add_column(column, overflow="fold")
            for row in panel.rows:
                table.add_row(*("" if cell is None else escape(number_format.number(cell)) for cell in row))
            yield table


def _metrics_table(name: str, report: Report) -> Table:
    """Return a table of the main metrics, one column per model; metrics of single patterns (`m/...`) are omitted."""
    table = Table(title=f"{name}: {report.task} on {report.dataset}", title_justify="left")
    models = list(dict.fromkeys(metric.model for metric in report.metrics))
    for column in ("metric", "n", "chance", *models):
        justify: Literal["left", "right"] = "right" if column in ("n", "chance") else "left"
        table.add_column(column, overflow="fold", justify=justify)
    rows: dict[str, dict[str, Metric]] = defaultdict(dict)
    for metric in report.metrics:
        if "/" not in metric.name:
            rows[metric.name][metric.model] = metric
    tests = {(test.metric, test.model): test for test in report.comparisons}
    for metric_name, by_model in rows.items():
        first = next(iter(by_model.values()))
        cells = [
            _cell(by_model[model], tests.get((metric_name, model))) if model in by_model else "" for model in models
        ]
        chance = "" if first.chance is None else number_format.quantity(first.chance, first.unit)
        table.add_row(MetricName(metric_name), f"{first.n:,}", chance, *cells)
    return table


def _cell(metric: Metric, test: Comparison | None) -> str:
    value = f"[bold]{number_format.quantity(metric.value, metric.unit)}[/] ({_interval(metric)})"
    return f"{value}\n[dim]{_test(test, metric.unit)}[/]" if test else value


def _interval(scored: Metric | SeedSummary) -> str:
    return number_format.interval(scored.low, scored.high, scored.unit)


def _test(test: Comparison, unit: str) -> str:
    return f"{number_format.change(test.difference, unit)}, p {number_format.p_value(test.p_value)}"
