"""Curves of several charts of a report in one, in a real browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chromium import browser, needs_chromium, section
from report_world import ODD, run
from vfm.interfaces import LinesPanel, Series
from vfm.report import RunSummary, write_report

__all__ = ["browser", "run"]
pytestmark = needs_chromium


def test_curves_of_other_charts_are_added_to_an_enlarged_one(run: RunSummary, tmp_path: Path, browser: Any) -> None:
    def chart(title: str, unit: str, end: float, *curves: Series, **more: bool) -> None:
        own = Series(name=title, x=[0, end], y=[0, end], low=[0, end], high=[0, end])
        LinesPanel(title=title, series=[own, *curves], x_label="step", y_label=unit, **more).save(directory)

    directory = run.stages[0].directory
    chart("Loss", "nats", 10, Series(name=ODD[0], x=[0, 10], y=[10, 0]))
    chart("Longer", "nats", 20)
    chart("Rate", "per step", 20)
    chart("Decades", "nats", 20, x_log=True)
    write_report(replace(run, stages=run.stages[:1]), tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri())
    loss = section(browser, "Loss")
    loss.find_element("css selector", ".chart svg").click()
    dialog = browser.find_element("css selector", "dialog")
    options = dialog.find_elements("css selector", "select option")
    assert [one.text for one in options] == ["Add a curve …", "Longer", "Rate"], "an x axis in decades is another"
    dialog.find_element("css selector", ".legend li:nth-child(2) button").click()
    for one in options[1:]:
        one.click()
        assert not one.is_enabled()
    names = [button.text for button in dialog.find_elements("css selector", ".legend button")]
    assert names[:3] == ["pool · Loss", f"pool · Loss: {ODD[0]}", "pool · Longer"]
    assert names[3].startswith("pool · Rate (own scale, ")
    shown = "return [...arguments[0].querySelectorAll('.chart [data-curve]')].map(c => c.style.display)"
    assert browser.execute_script(shown, dialog) == ["", "", "none", "", "", "", ""], "a band and a curve of each"

    boxes = (
        "return [...arguments[0].querySelectorAll('.chart [data-curve] > path')].map(p => p.getBoundingClientRect())"
    )
    own, _, longer, rate = browser.execute_script(boxes, dialog)
    for side in ("left", "bottom"):
        assert own[side] == pytest.approx(longer[side], abs=1)
    for size in ("width", "height"):
        assert longer[size] == pytest.approx(2 * own[size], abs=2), "one scale for one unit"
        assert rate[size] == pytest.approx(longer[size], abs=2), "another unit has the height of the chart"
    assert own["width"] > 200
    at = (
        "return [...arguments[0].querySelectorAll('.chart text')].filter(t => t.textContent === '10')"
        ".map(t => t.getBoundingClientRect())"
    )
    on_y, on_x = browser.execute_script(at, dialog)
    assert (on_x["left"] + on_x["right"]) / 2 == pytest.approx(own["right"], abs=2)
    assert (on_y["top"] + on_y["bottom"]) / 2 == pytest.approx(own["top"], abs=2)
    colours = browser.execute_script(
        "return [...arguments[0].querySelectorAll('.chart [data-curve] > path')].map(p => getComputedStyle(p).stroke)",
        dialog,
    )
    assert len(set(colours)) == 4
