"""The stage `eval.summary`: the page's table of all data sets and models, and means over sets that are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from vfm.artifacts import Comparison, Metric, Report
from vfm.config import Config, UserError, did_you_mean
from vfm.panels import TablePanel
from vfm.stage import Context, Ref, Stage

if TYPE_CHECKING:
    from vfm.eval.summary import Estimate, Scored

Cells = list[str | float | int | None]


class SummarisedReport(Config):
    """A report, and what of it counts."""

    report: Ref[Report] = Field(description="an evaluation's report")
    title: str = Field("", description="of its row; default: the report's data set")
    group: str = Field("", description="rows of a group are averaged; none: this one is not")
    way: str = Field(
        "", description="what sets rows of one data set apart (a task, a language, resizing): each has means of its own"
    )
    metrics: list[str] = Field([], description="metrics whose mean is the score; default: the report's main one")


class LeftOut(Config):
    """What belongs to the list and was not judged."""

    title: str = Field(description="what it is")
    group: str = Field("", description="the group it would count in")
    ways: list[str] = Field([], description="and the ways in which it would; default: each")
    why: str = Field(description="why it is not there, and where to get it")


class Summary(Stage):
    """Many evaluations in one table, with means over groups that say how many of how many sets they are of."""

    kind: Literal["eval.summary"] = "eval.summary"
    version: ClassVar[int] = 2  # since rows of one data set have means of their own, or err together

    scores: list[SummarisedReport] = Field(min_length=1, description="the reports, in the order of the rows")
    missing: list[LeftOut] = Field([], description="what is left out of the means, so that the table says it")

    def run(self, ctx: Context) -> Report:
        """Leaves the table at the top of the page; the report's metrics are the means."""
        from vfm.eval.summary import mean_over, score_of

        found: list[tuple[SummarisedReport, str, Scored]] = []
        for one in self.scores:
            report = ctx.load(one.report)
            try:
                found.append((one, report.task, score_of(report, one.metrics)))
            except KeyError as error:
                known = [metric.name for metric in report.metrics]
                raise UserError(
                    f"{one.report} has no metric {error}{did_you_mean(str(error.args[0]), known)}"
                ) from None
        metrics: list[Metric] = []
        tests: list[Comparison] = []
        for way, group in self._averaged():
            counted = [
                scored for one, _, scored in found if one.group and one.way == way and group in (one.group, None)
            ]
            num_sets = len({scored.dataset for scored in counted})
            name = f"mean of {', '.join(part for part in (group or 'all groups', way) if part)}"
            means, gains = mean_over(counted, f"{name}: {num_sets} of {num_sets + self._num_missing(way, group)} sets")
            metrics += means
            tests += gains
        rows = [(one.title or str(one.report), task, scored) for one, task, scored in found]
        ctx.panel(_table(rows, metrics, tests))
        if self.missing:
            ctx.panel(self._left_out())
        return Report.create(ctx.directory, task="summary", dataset=self.name, metrics=metrics, comparisons=tests)

    def _averaged(self) -> list[tuple[str, str | None]]:
        """What there are means of: each group in each way, and where a way has several, all of them (None)."""
        means: list[tuple[str, str | None]] = []
        for way in dict.fromkeys(one.way for one in self.scores):
            groups = list(dict.fromkeys(one.group for one in self.scores if one.group and one.way == way))
            means += [(way, group) for group in [*groups, *([None] if len(groups) > 1 else [])]]
        return means

    def _num_missing(self, way: str, group: str | None) -> int:
        gaps = [gap for gap in self.missing if gap.group and group in (gap.group, None)]
        return sum(not gap.ways or way in gap.ways for gap in gaps)

    def _left_out(self) -> TablePanel:
        columns = ["what", "group", "why"] if any(gap.group for gap in self.missing) else ["what", "why"]
        rows: list[Cells] = [[{"what": gap.title, **vars(gap)}[name] for name in columns] for gap in self.missing]
        note = "These belong to what was asked for, and are in no mean above."
        return TablePanel(title="Left out", note=note, order=11, front=True, columns=columns, rows=rows)


def _table(rows: Sequence[tuple[str, str, Scored]], means: Sequence[Metric], tests: Sequence[Comparison]) -> TablePanel:
    """A row a report, then the means; a column a model, and one for its gain on the first."""
    # A row of all models has them in the order in which they were asked for.
    by_size = sorted((scored for _, _, scored in rows), key=lambda scored: -len(scored.values))
    models = list(dict.fromkeys(model for scored in by_size for model in scored.values))
    first = models[0]
    others = [model for model in models if any(model in scored.gains for _, _, scored in rows)]
    cells: list[Cells] = []
    for title, task, scored in rows:
        values = [_value(scored.values[model]) if model in scored.values else "–" for model in models]
        on = "" if scored.baseline == first else f" on {scored.baseline}"
        gains = [_gain(scored.gains[m].value, scored.p_values[m], on) if m in scored.gains else "–" for m in others]
        chance = None if scored.chance is None else round(100 * scored.chance, 1)
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
    note = "Per cent, with 95 % interval. A mean is of the models that were judged on all its sets."
    if others:
        note += f" Gains on {first} in percentage points, with the p-value of the paired test on the same items."
    columns = ["data set", "task", "metric", "n", "chance", *models, *(f"{model} over {first}" for model in others)]
    return TablePanel(title="All data sets", note=note, order=10, front=True, columns=columns, rows=cells)


def _value(one: Estimate) -> str:
    return _cell(one.value, one.low, one.high)


def _cell(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{100 * high:.1f})"


def _gain(value: float, p_value: float, on: str = "") -> str:
    return f"{100 * value:+.1f}{on}, p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{p_value:.2g}"
