"""What evaluations found, as tables of one shape: a metric with a row for each model, of one run or over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vfm.artifacts import Artifact, Comparison, Report
from vfm.config import UserError
from vfm.flow.report import wording
from vfm.flow.report.scale import Scale
from vfm.flow.report.summary import RunSummary, StageEntry


@dataclass(frozen=True)
class Row:
    """One model's value of a metric; the values of all seeds where it is a mean, the test against the first model."""

    model: str
    value: float
    low: float
    high: float
    values: Sequence[float] = ()
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Result:
    """A metric with a row for each model that was judged by it."""

    metric: str
    unit: str
    n: int | None
    chance: float | None
    rows: list[Row]

    @property
    def facts(self) -> list[str]:
        """What belongs beside the metric's name: how many items it is of, and what a blind guess gives."""
        count = [] if self.n is None else [f"n = {wording.number(self.n)}"]
        guess = [] if self.chance is None else [f"chance {wording.quantity(self.chance, self.unit)}"]
        return [fact.replace(" ", wording.NO_BREAK) for fact in count + guess]


@dataclass(frozen=True)
class ResultTable:
    """What one evaluation found, or the evaluations of one name over seeds."""

    title: str
    subtitle: str
    anchor: str
    results: list[Result]
    num_headline: int = 6

    @property
    def headline(self) -> list[Result]:
        """The results for the top of the page."""
        return self.results[: self.num_headline]

    @property
    def further(self) -> list[Result]:
        """The results for the stage's own section."""
        return self.results[self.num_headline :]

    @property
    def beside(self) -> str:
        """Heads the last column: what the paired tests compare with, and the values of the seeds."""
        baselines = {row.comparison.baseline for result in self.results for row in result.rows if row.comparison}
        tests = f"Against {baselines.pop()}" if len(baselines) == 1 else "Difference" if baselines else ""
        if not any(row.values for result in self.results for row in result.rows):
            return tests
        return f"{tests}; each seed" if tests else "Each seed"

    @property
    def tests(self) -> set[str]:
        """The names of the paired tests."""
        return {row.comparison.test for result in self.results for row in result.rows if row.comparison}

    def scale(self, unit: str) -> Scale:
        """One scale for all values of a unit, so that they can be compared by eye down the whole table."""
        rows = [row for result in self.results if result.unit == unit for row in result.rows]
        chances = [result.chance for result in self.results if result.unit == unit]
        return Scale.of([*chances, *(value for row in rows for value in (row.low, row.high, *row.values))])


def report_table(entry: StageEntry, seeded: set[str]) -> ResultTable | None:
    """The metrics of a stage that made a Report; in the headline, a table over seeds may stand for it."""
    try:
        report = Artifact.load(entry.directory)
    except UserError:  # of a package that is not installed, or gone: the rest of the run is still worth a page
        return None
    if not isinstance(report, Report):
        return None
    compared = {(c.metric, c.model): c for c in report.comparisons}
    results: dict[str, Result] = {}
    for m in report.metrics:
        result = results.setdefault(m.name, Result(m.name, m.unit, m.n, m.chance, []))
        result.rows.append(Row(m.model, m.value, m.low, m.high, comparison=compared.get((m.name, m.model))))
    num_headline = 0 if entry.base_name in seeded else ResultTable.num_headline
    subtitle = f"{report.task} on {report.dataset}"
    return ResultTable(entry.name, subtitle, entry.anchor, list(results.values()), num_headline)


def seed_tables(run: RunSummary) -> dict[str, ResultTable]:
    """The summaries over seeds as one table for each name of a report; unit and chance are those of the reports."""
    tables: dict[str, ResultTable] = {}
    for s in run.seeds:
        entry = next(entry for entry in run.stages if entry.base_name == s.report)
        subtitle = f"mean over {len(s.values)} seeds, 95 % t-interval"
        table = tables.setdefault(s.report, ResultTable(s.report, subtitle, entry.anchor, []))
        result = next((result for result in table.results if result.metric == s.metric), None)
        if result is None:
            single = report_table(entry, set())
            known = {one.metric: one for one in single.results} if single else {}
            like = known.get(s.metric, Result(s.metric, "", None, None, []))
            result = replace(like, n=None, rows=[])
            table.results.append(result)
        result.rows.append(Row(s.model, s.mean, s.low, s.high, s.values, s.comparison))
    return tables
