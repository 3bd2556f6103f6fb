"""The difference between two models that an evaluation would show, by the number of its items."""

from __future__ import annotations

import math
from collections.abc import Iterable

from vfm.base import number_format
from vfm.interfaces import LinesPanel, Series
from vfm.report.conclusions import ReportedComparison
from vfm.report.decisions import in_points

TIMES = (0.25, 0.5, 1, 2, 4, 8, 16)  # numbers of items in multiples of the measured ones


def power_charts(findings: Iterable[ReportedComparison]) -> dict[str, LinesPanel]:
    """Build a chart for each report with comparisons of main metrics on items, by the report's name.

    The standard error falls with the root of the number of items.
    """
    of_report: dict[str, list[ReportedComparison]] = {}
    for finding in findings:
        if finding.main and finding.n and math.isfinite(finding.detectable) and finding.detectable > 0:
            of_report.setdefault(finding.report, []).append(finding)
    return {name: _chart(compared) for name, compared in of_report.items()}


def _chart(compared: list[ReportedComparison]) -> LinesPanel:
    first = compared[0]
    scale = number_format.PERCENT_UNITS.get(first.unit, 1.0)
    num_metrics = len({finding.test.metric for finding in compared})
    series = []
    for finding in compared:
        name = f"{finding.test.model} against {finding.test.baseline}"
        if num_metrics > 1:
            name = f"{finding.test.metric}: {name}"
        x = []
        y = []
        for times in TIMES:
            x.append(finding.n * times)
            y.append(scale * finding.detectable / math.sqrt(times))
        series.append(Series(name=name, x=x, y=y))
    size = in_points(first.detectable, first.unit)
    return LinesPanel(
        title="Difference that would be seen",
        note=(
            f"With these {number_format.number(first.n)} items a difference of {size} is seen in 80 % of cases, by the"
            " spread over the items and at the corrected level. The curve is for other numbers of such items."
        ),
        order=90,
        series=series,
        x_label="items",
        y_label="points" if scale != 1.0 else first.unit,
        x_log=True,
    )
