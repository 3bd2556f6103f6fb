"""Build result tables with a row per model for each metric, for one evaluation or over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vfm.base import UserError, number_format
from vfm.interfaces import Artifact, Comparison, Report
from vfm.report.conclusions import ALPHA, ReportedComparison, corrected
from vfm.report.run_summary import RunSummary, StageEntry
from vfm.report.scale import Scale


@dataclass(frozen=True)
class ResultRow:
    """A model's value of a metric, with the values by seed if it is a mean, and the test against the first model."""

    model: str
    value: float
    low: float
    high: float
    values: Sequence[float] = ()
    comparison: Comparison | None = None

    @property
    def sign(self) -> str:
        """Mark of a clear difference, by its corrected p-value.

        The difference is of two models, or its direction over seeds.
        """
        if self.comparison is None or not self.comparison.p_value <= ALPHA:  # NaN is not clear
            return ""
        if not self.values:
            return "≠"
        if self.comparison.difference > 0:
            return "▲"
        return "▼"

    @property
    def meaning(self) -> str:
        """The mark in words."""
        of_method = {"▲": "the method raises it", "▼": "the method lowers it"}
        return {"≠": "these two models differ on these items", **of_method}.get(self.sign, "no clear difference")


@dataclass(frozen=True)
class Result:
    """A metric with a row for each model. `main` is True if it decides between models."""

    metric: str
    unit: str
    n: int | None
    chance: float | None
    rows: list[ResultRow]
    main: bool = True

    @property
    def facts(self) -> list[str]:
        """The number of items and the score of a random guess, shown next to the metric's name."""
        facts = []
        if self.n is not None:
            facts.append(f"n = {number_format.number(self.n)}")
        if self.chance is not None:
            facts.append(f"chance {number_format.quantity(self.chance, self.unit)}")
        return [fact.replace(" ", number_format.NO_BREAK) for fact in facts]


@dataclass(frozen=True)
class ResultTable:
    """The results of an evaluation, or of evaluations that only differ in their seed."""

    title: str
    subtitle: str
    anchor: str
    results: list[Result]
    num_headline: int = 6

    @property
    def headline(self) -> list[Result]:
        """Results for the top of the page."""
        return self.results[: self.num_headline]

    @property
    def further(self) -> list[Result]:
        """Results for the section of the stage."""
        return self.results[self.num_headline :]

    @property
    def beside(self) -> str:
        """Heading of the last column, with the baseline of the paired tests and the values of the seeds."""
        baselines: set[str] = set()
        has_seeds = False
        for result in self.results:
            for row in result.rows:
                has_seeds |= bool(row.values)
                if row.comparison:
                    baselines.add(row.comparison.baseline)
        tests = "Difference" if baselines else ""
        if len(baselines) == 1:
            tests = f"Against {baselines.pop()}"
        if not has_seeds:
            return tests
        if not tests:
            return "Each seed"
        return f"{tests}; each seed"

    def result_of(self, metric: str) -> Result | None:
        """Find the result of a metric."""
        for result in self.results:
            if result.metric == metric:
                return result
        return None

    def scale(self, unit: str) -> Scale:
        """Choose one scale for all values of a unit, so that bars are comparable throughout the table."""
        values: list[float | None] = []
        for result in self.results:
            if result.unit == unit:
                values.append(result.chance)
                for row in result.rows:
                    values += [row.value, row.low, row.high, *row.values]
        return Scale.of(values)


def report_table(entry: StageEntry, seeded: set[str]) -> ResultTable | None:
    """Build the table of metrics of a stage.

    Args:
        entry: The stage.
        seeded: Stages with a table over seeds. It replaces their tables in the headline.

    Returns:
        The table, or None if the stage made no Report.
    """
    try:
        report = Artifact.load(entry.directory, verify=False)
    except UserError:  # its package is not installed, or its folder is missing: draw the rest of the page
        return None
    if not isinstance(report, Report):
        return None
    compared = {(c.metric, c.model): c for c in report.comparisons}
    results: dict[str, Result] = {}
    for m in report.metrics:
        result = results.setdefault(m.name, Result(m.name, m.unit, m.n, m.chance, [], m.name in report.main_metrics))
        result.rows.append(ResultRow(m.model, m.value, m.low, m.high, comparison=compared.get((m.name, m.model))))
    num_headline = 0 if entry.base_name in seeded else ResultTable.num_headline
    subtitle = f"{report.task} on {report.dataset}"
    return ResultTable(entry.name, subtitle, entry.anchor, list(results.values()), num_headline)


def corrected_tables(tables: Sequence[ResultTable]) -> tuple[list[ResultTable], list[ReportedComparison]]:
    """Correct the p-values in the tables of a page for the number of its comparisons, and list the comparisons."""
    reported = []
    for table in tables:
        for result in table.results:
            for row in result.rows:
                if row.comparison:
                    reported.append(
                        ReportedComparison(
                            table.title, row.comparison, result.unit, len(row.values), result.main, result.n or 0
                        )
                    )
    findings = corrected(reported)
    tests = (finding.test for finding in findings)  # consumed in the order in which they were collected
    fixed = []
    for table in tables:
        results = [replace(result, rows=_with_tests(result.rows, tests)) for result in table.results]
        fixed.append(replace(table, results=results))
    return fixed, findings


def _with_tests(rows: Sequence[ResultRow], tests: Iterator[Comparison]) -> list[ResultRow]:
    return [replace(row, comparison=next(tests)) if row.comparison else row for row in rows]


def seed_tables(run: RunSummary) -> dict[str, ResultTable]:
    """Build the summaries over seeds, one table per report name. Units and chance are taken from the reports."""
    stages: dict[str, StageEntry] = {}
    for entry in run.stages:
        stages.setdefault(entry.base_name, entry)
    tables: dict[str, ResultTable] = {}
    for s in run.seeds:
        entry = stages[s.report]
        subtitle = f"mean over {len(s.values)} seeds, 95 % t-interval"
        table = tables.setdefault(s.report, ResultTable(s.report, subtitle, entry.anchor, []))
        result = table.result_of(s.metric)
        if result is None:
            single = report_table(entry, set())
            like = single and single.result_of(s.metric)
            result = replace(like or Result(s.metric, "", None, None, []), n=None, rows=[], main=s.main)
            table.results.append(result)
        result.rows.append(ResultRow(s.model, s.mean, s.low, s.high, s.values, s.comparison))
    return tables
