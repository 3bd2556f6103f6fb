"""The report of a real run: what it takes from the run folder, also when it is drawn again later."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

import toy_plugin
import vfm
from vfm.flow.execution.run import run_plan
from vfm.flow.listeners.listeners import JsonLinesListener
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.runs import EVENTS_FILE, open_run
from vfm.interfaces import Metric, Report
from vfm.report import RunSummary, report_of_run, summary_of_run

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


class Judge(vfm.Stage):
    """Judges numbers, two models an evaluation."""

    kind: Literal["toy.judge"] = "toy.judge"
    models: list[vfm.Ref[toy_plugin.Numbers]]

    def run(self, ctx: vfm.Context) -> Report:
        totals = {str(ref): sum(ctx.load(ref).values) / 100 for ref in self.models}
        metrics = [
            Metric(name="acc1", value=v, n=50, low=v - 0.1, high=v + 0.1, model=m, chance=0.1)
            for m, v in totals.items()
        ]
        return Report.create(ctx.directory, task="sums", dataset="numbers", metrics=metrics)


KNOWN = {stage.kind_name(): stage for stage in [*toy_plugin.vfm_stages(), Judge]}


def go(text: str, store: Path) -> Path:
    """Runs a recipe as the command line does, events kept in the run's folder."""
    recipe = parse_recipe(text, KNOWN, (), name="r", where="r.yaml")
    steps = make_plan(recipe, Store(store))
    listener = JsonLinesListener(open_run(recipe, steps, Store(store)) / EVENTS_FILE)
    directory = run_plan(recipe, steps, Store(store), listener.vfm_event).directory
    listener.stream.close()
    return directory


def stages(summary: RunSummary) -> dict[str, str]:
    return {entry.name: entry.status for entry in summary.stages}


def test_a_second_run_reports_cached_stages_and_keeps_the_places_of_bad_samples(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("one")
    text = f"description: Reads words.\nstages:\n  - {{kind: toy.read, name: w, path: {file}}}\n"
    assert stages(summary_of_run(go(text, tmp_path))) == {"w": "new"}
    directory = go(text + "  - {kind: toy.draw, name: d}\n", tmp_path)
    with (directory / EVENTS_FILE).open("a") as events:
        events.write('{"t": 1, "type": "bad_sample", "sta')  # as a kill leaves it
    summary = summary_of_run(directory)
    assert stages(summary) == {"w": "cached", "d": "new"}
    assert summary.stages[0].bad_examples == {"odd_word": [f"{file}:1"]}
    page = report_of_run(directory)
    assert page == directory / "report.html"
    for fact in ("Reads words.", "reading is slow", "odd_word", f"{file}:1", summary.stages[1].id):
        assert fact in page.read_text()


def test_inputs_bear_the_names_of_this_recipe(tmp_path: Path) -> None:
    text = "stages:\n  - {kind: toy.draw, name: a}\n  - {kind: toy.add, name: total, inputs: [a]}\n"
    go(text, tmp_path)
    summary = summary_of_run(go(text.replace("name: a", "name: x").replace("[a]", "[x]"), tmp_path))
    assert stages(summary) == {"x": "cached", "total": "cached"}
    assert summary.stages[1].inputs == {"x": summary.stages[0].id}


def test_seeds_are_summarised_with_the_unit_of_their_reports(tmp_path: Path) -> None:
    text = """\
seeds: [1, 2, 3]
stages:
  - {kind: toy.draw, name: a, count: 2}
  - {kind: toy.judge, name: judged, models: [a]}
"""
    directory = go(text, tmp_path)
    (mean,) = summary_of_run(directory).seeds
    assert (mean.report, mean.model, mean.metric) == ("judged", "a", "acc1")
    assert mean.values == pytest.approx((0.15, 0.29, 0.43))
    page = report_of_run(directory).read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "mean over 3 seeds" in page
    assert "15.0, 29.0, 43.0 %" in page.replace("\n", "")
