"""The tables of a run's results for the terminal."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from vfm.base import number_format
from vfm.interfaces import Comparison, Metric, Report, TablePanel, load_panels
from vfm.report.conclusions import corrected, corrections, findings_of, findings_over_seeds
from vfm.report.decisions import decisions
from vfm.report.results import SeedSummary, over_seeds, reports

Tests = Mapping[tuple[str, str, str], Comparison]  # by report, metric and model; their p-values are corrected


@dataclass(frozen=True)
class MetricName:
    """A name in a cell. In a narrow cell it breaks after `_`, so that words and numbers stay whole."""

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
        """Measure the smallest and the largest width."""
        return Measurement(self.longest_part, len(self.name))

    @property
    def longest_part(self) -> int:
        """Width of the longest part that is not broken."""
        return max(map(len, self._parts()))

    def _parts(self) -> list[str]:
        return re.findall("[^_]*_|[^_]+$", self.name) or [self.name]


def result_tables(directory: Path) -> list[Table]:
    """Build the tables that `vfm run` prints, one per report, with intervals and paired tests, and one over seeds.

    The p-values are corrected for the number of comparisons. What they decide is written below the last table.
    """
    loaded = reports(directory)
    summaries = over_seeds(loaded)
    findings = corrected([*findings_of(loaded), *findings_over_seeds(summaries)])
    tests = {(finding.report, finding.test.metric, finding.test.model): finding.test for finding in findings}
    tables = [_metrics_table(name, report, tests) for name, report in loaded.items()]
    if summaries:
        tables.append(_seeds_table(summaries, tests))
    if tables and findings:
        tables[-1].caption = escape("\n".join([*decisions(findings), *corrections(findings)]))
        tables[-1].caption_justify = "left"
    return tables


def _seeds_table(summaries: Sequence[SeedSummary], tests: Tests) -> Table:
    heads = ("report", "model", "metric", "mean", "95 % interval", "difference from the first", "values")
    table = Table(title="over seeds", title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for summary in summaries:
        values = number_format.quantities(summary.values, summary.unit)
        test = tests.get((summary.report, summary.metric, summary.model))
        difference = _test(test, summary.unit) if test else ""
        mean = (number_format.quantity(summary.mean, summary.unit), _interval(summary))
        table.add_row(summary.report, *map(escape, (summary.model, summary.metric)), *mean, difference, values)
    return table


def panel_tables(artifact: Path, title: str = "") -> Iterator[Table]:
    """Yield the tables among the panels of an artifact whose title begins with `title`."""
    for panel in load_panels(artifact):
        if isinstance(panel, TablePanel) and panel.title.startswith(title):
            table = Table(title=escape(panel.title), title_justify="left", caption_justify="left", box=None)
            table.caption = escape(panel.note)
            rows = [list(map(_panel_cell, row)) for row in panel.rows]
            for index, column in enumerate(panel.columns):
                cells = map(itemgetter(index), rows)
                widths = [cell.longest_part for cell in cells if isinstance(cell, MetricName)]
                table.add_column(escape(column), overflow="fold", min_width=max(widths, default=None))
            for row in rows:
                table.add_row(*row)
            yield table


def _panel_cell(cell: str | float | int | None) -> RenderableType:
    if isinstance(cell, str) and re.fullmatch(r"\S*_\S*", cell):
        return MetricName(cell)
    if cell is None:
        return ""
    return escape(number_format.number(cell))


def _metrics_table(name: str, report: Report, tests: Tests) -> Table:
    """Build a table of the main metrics, one column per model. Metrics of single patterns (`m/...`) are omitted."""
    table = Table(title=escape(f"{name}: {report.task} on {report.dataset}"), title_justify="left")
    models = list(dict.fromkeys(metric.model for metric in report.metrics))
    for column in ("metric", "n", "chance", *models):
        justify: Literal["left", "right"] = "right" if column in ("n", "chance") else "left"
        table.add_column(escape(column), overflow="fold", justify=justify)
    rows: dict[str, dict[str, Metric]] = defaultdict(dict)
    for metric in report.metrics:
        if "/" not in metric.name:
            rows[metric.name][metric.model] = metric
    for metric_name, by_model in rows.items():
        first = next(iter(by_model.values()))
        cells = []
        for model in models:
            test = tests.get((name, metric_name, model))
            cells.append(_cell(by_model[model], test) if model in by_model else "")
        if first.chance is None:
            chance = ""
        else:
            chance = number_format.quantity(first.chance, first.unit)
        table.add_row(MetricName(metric_name), f"{first.n:,}", chance, *cells)
    return table


def _cell(metric: Metric, test: Comparison | None) -> str:
    value = f"[bold]{number_format.quantity(metric.value, metric.unit)}[/] ({_interval(metric)})"
    if not test:
        return value
    return f"{value}\n[dim]{_test(test, metric.unit)}[/]"


def _interval(scored: Metric | SeedSummary) -> str:
    return number_format.interval(scored.low, scored.high, scored.unit)


def _test(test: Comparison, unit: str) -> str:
    return f"{number_format.change(test.difference, unit)}, p {number_format.p_value(test.p_value)}"
