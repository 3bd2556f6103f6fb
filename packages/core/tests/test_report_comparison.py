"""The page that compares runs: paired tests from stored items, the settings that differ, curves in one chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

import toy_plugin
import vfm
from vfm.cli import app
from vfm.eval.encode.scored_items import ITEMS_FILE, read_items, write_items
from vfm.flow.execution.run import run_plan
from vfm.flow.listeners.listeners import JsonLinesListener
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.runs import EVENTS_FILE, open_run
from vfm.interfaces import LinesPanel, Report, Series
from vfm.plugin import UserError
from vfm.report import is_current, summary_of_run
from vfm.statistics import Accuracy, MeanAveragePrecision, compare, to_metric

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
comparison = pytest.importorskip("vfm.report.comparison")


class Guess(vfm.Stage):
    """Guess items, right with probability `skill`; `data` names the items."""

    kind: Literal["toy.guess"] = "toy.guess"
    skill: float = 0.5
    data: str = "a"

    def run(self, ctx: vfm.Context) -> Report:
        score = guessed(self.skill)
        write_items(ctx.directory, [("m", score)])
        (ctx.directory / "results").mkdir()
        (ctx.directory / "results" / "m.json").write_text(json.dumps({"data_sha256": self.data}))
        ctx.panel(
            LinesPanel(title="Loss", x_label="step", y_label="", series=[Series(name="loss", x=[0, 1], y=[1, 0])])
        )
        return Report.create(ctx.directory, task="guess", dataset="d", metrics=[to_metric(score, model="m")])


def guessed(skill: float) -> Accuracy:
    return Accuracy("acc1", np.random.default_rng(0).random(60) < skill, chance=0.5)


KNOWN = {stage.kind_name(): stage for stage in [*toy_plugin.vfm_stages(), Guess]}
TEXT = "stages:\n  - {kind: toy.draw, name: same}\n  - {kind: toy.guess, name: g}\n"


def go(store: Path, *overrides: str) -> Path:
    recipe = parse_recipe(TEXT, KNOWN, overrides, name="r", where="r.yaml")
    steps = make_plan(recipe, Store(store))
    listener = JsonLinesListener(open_run(recipe, steps, Store(store)) / EVENTS_FILE)
    directory = run_plan(recipe, steps, Store(store), listener.vfm_event).directory
    listener.stream.close()
    return directory.resolve()


def test_runs_are_compared_by_the_test_that_one_evaluation_would_make(tmp_path: Path) -> None:
    runs = {folder.name: summary_of_run(folder) for folder in (go(tmp_path), go(tmp_path, "g.skill=0.9"))}
    entries = {name: run.stages[-1] for name, run in runs.items()}
    table = comparison.result_table("g", entries)
    first, second = table.results[0].rows
    assert (first.model, second.model) == ("r@1: m", "r@2: m")
    assert first.comparison is None
    assert second.comparison == compare(guessed(0.5), guessed(0.9), baseline="r@1", model="r@2: m")
    settings_table = comparison.settings_table({"g": entries}, list(runs))
    assert settings_table.rows == [["g", "skill", "0.5", "0.9"]]
    (chart,) = comparison.overlaid_curves(entries)
    assert [series.name for series in chart.panel.series] == ["r@1", "r@2"]
    comparison.write_comparison(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "r@1 and r@2" in page
    assert "exact McNemar" in page
    assert 'href="#stage-same' not in page.partition("Provenance")[0]  # the same artifact in both


def test_scores_on_other_data_are_not_tested(tmp_path: Path) -> None:
    runs = [summary_of_run(folder) for folder in (go(tmp_path), go(tmp_path, "g.data=b"))]
    table = comparison.result_table("g", {"one": runs[0].stages[-1], "two": runs[1].stages[-1]})
    assert [row.comparison for row in table.results[0].rows] == [None, None]
    assert "on different data: no tests" in table.subtitle


def test_the_command_compares_and_refuses_a_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [go(tmp_path / "store"), go(tmp_path / "store", "g.skill=0.9")]
    with pytest.raises(UserError, match="expected different runs to compare, got r@1 twice"):
        vfm.draw_report([folders[0], folders[0]], out=tmp_path / "page.html")
    done = CliRunner().invoke(app, ["report", "r@1", "r@2"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "comparison.html").is_file()
    own = folders[0] / "report.html"
    assert CliRunner().invoke(app, ["report", "r@1", "r@2", "--out", str(own)]).exit_code == 0
    assert not is_current(folders[0]), "a comparison is not the page of its first run"


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
    st.booleans(),
)
def test_items_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bool, int, int]], grouped: bool, by_class: bool
) -> None:
    folder = tmp_path_factory.mktemp("items")
    correct, groups, classes = (np.array(column) for column in zip(*rows, strict=True))
    score = Accuracy("acc1", correct, groups if grouped else None, classes if by_class else None)
    other = Accuracy("acc5", ~correct)
    ranked = MeanAveragePrecision("map", np.ones((2, 2)), np.eye(2, dtype=bool))
    write_items(folder, [("a", score), ("a", other), ("b", score), ("b", ranked)])
    found = read_items(folder)
    assert list(found) == [("a", "acc1"), ("a", "acc5"), ("b", "acc1")]
    for key, expected in ((("a", "acc1"), score), (("a", "acc5"), other), (("b", "acc1"), score)):
        for name in ("correct", "groups", "classes"):
            a, b = getattr(found[key], name), getattr(expected, name)
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(a, b)


def test_damaged_items_are_one_line_with_the_file(tmp_path: Path) -> None:
    (tmp_path / ITEMS_FILE).write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=f"{ITEMS_FILE}: not readable as scored items"):
        read_items(tmp_path)
    assert read_items(tmp_path / "none") == {}
