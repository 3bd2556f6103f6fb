"""Tables of results on a terminal: shares in per cent as in the report, and no digit lost where it is narrow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vfm.base import TerminalConsole, number_format
from vfm.interfaces import Comparison, Metric, Report, TablePanel
from vfm.report.conclusions import corrected, findings_of
from vfm.report.result_tables import _metrics_table, panel_tables


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Two models, a share and a distance, and a test of each."""
    metrics = [
        Metric(name=name, value=value, unit=unit, n=12_345, low=0.9 * value, high=1.1 * value, model=model, chance=0.25)
        for model, factor in (("clip", 1.0), ("tuned", 1.08))
        for name, value, unit in (("image_retrieval_recall@10", 0.6453 * factor, "share"), ("fid", 1234.5, "points"))
    ]
    test = Comparison(
        metric="image_retrieval_recall@10", model="tuned", baseline="clip", difference=-0.0516, low=-0.06, high=-0.04,
        p_value=0.0312, test="sign flips",
    )  # fmt: skip
    return Report.create(tmp_path / "report", task="retrieval", dataset="val", metrics=metrics, comparisons=[test])


def shown(report: Report, width: int, encoding: str = "utf-8") -> str:
    console = TerminalConsole(width=width, color_system=None)
    with console.capture() as captured:
        tests = {
            (one.report, one.test.metric, one.test.model): one.test for one in corrected(findings_of({"own": report}))
        }
        console.print(_metrics_table("own", report, tests))
    return captured.get()


def test_shares_are_per_cent_as_in_the_report_and_other_units_stay(report: Report) -> None:
    table = shown(report, 200)
    for metric in report.metrics:
        assert number_format.quantity(metric.value, metric.unit) in table
        assert number_format.interval(metric.low, metric.high, metric.unit) in table
    assert f"{number_format.change(-0.0516, 'share')}, p {number_format.p_value(0.0312)}" in table
    assert "25.0\N{NO-BREAK SPACE}%" in table


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_no_number_loses_digits_where_it_is_narrow(report: Report, width: int) -> None:
    numbers = [re.findall(r"\d[\d.,]*", shown(report, columns)) for columns in (width, 200)]
    assert sorted(numbers[0]) == sorted(numbers[1])
    assert max(map(len, shown(report, width).splitlines())) <= width


def test_names_with_brackets_are_no_markup(tmp_path: Path) -> None:
    metric = Metric(name="acc1", value=0.5, n=4, low=0.4, high=0.6, model="clip[old]")
    facts = {"task": "t", "dataset": "photos[2]", "metrics": [metric], "comparisons": []}
    text = shown(Report.create(tmp_path / "report", **facts), 120)
    assert "clip[old]" in text
    assert "photos[2]" in text
    TablePanel(title="All [b]", note="[i]", columns=["clip[old]"], rows=[["[red]"]]).save(tmp_path)
    console = TerminalConsole(width=80, color_system=None)
    with console.capture() as captured:
        console.print(*panel_tables(tmp_path))
    assert [name for name in ("All [b]", "[i]", "clip[old]", "[red]") if name not in captured.get()] == []


@pytest.mark.parametrize("width", [100, 120])
def test_names_break_after_an_underscore_and_not_in_a_word(tmp_path: Path, width: int) -> None:
    share = f"{number_format.quantity(0.367)} ({number_format.interval(0.338, 0.396, 'share')})"
    columns = ["data set", "task", "metric", "n", "chance", "clip", "tuned", "tuned over clip"]
    cells = ["val", "zeroshot_classification", "mean_per_class_recall", 360, "2.8 %", share, share, "+2.0, p = 0.2"]
    TablePanel(title="All", columns=columns, rows=[cells]).save(tmp_path)
    console = TerminalConsole(width=width, color_system=None)
    with console.capture() as captured:
        console.print(*panel_tables(tmp_path))
    words = re.findall("[a-z]+_?", captured.get())
    assert {"zeroshot_", "classification"} <= set(words) or "zeroshot_classification" in captured.get()
