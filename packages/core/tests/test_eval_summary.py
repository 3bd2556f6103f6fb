"""Means over datasets: their interval equals that of resampling all sets at once, and their names state the sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from eval_world import run_in
from vfm.base import UserError, number_format
from vfm.eval.compare.stages import MissingDataset, ReportSummary, SummarisedReport
from vfm.eval.compare.summary_scores import Estimate, mean_over, score_of
from vfm.interfaces import Comparison, Metric, Report, TablePanel, load_panels
from vfm.statistics import Accuracy, compare, holm, to_metric


def report(directory: Path, seed: int, n: int, **rates: float) -> Report:
    """Write a report of models with these accuracies on the same items, with two metrics."""
    draws = np.random.default_rng(seed).random(n)
    scores = {name: Accuracy("acc1", draws < rate) for name, rate in rates.items()}
    (first, base), *others = scores.items()
    metrics = [to_metric(score, model=name) for name, score in scores.items()]
    metrics += [metric.model_copy(update={"name": "acc5", "value": 1.0, "low": 1.0, "high": 1.0}) for metric in metrics]
    tests = [compare(base, score, baseline=first, model=name) for name, score in others]
    return Report.create(
        directory, task="zeroshot_classification", dataset=directory.name, metrics=metrics, comparisons=tests
    )


def with_chance(made: Report, chance: float) -> Report:
    """Write a report again with what a random guess has."""
    metrics = [metric.model_copy(update={"chance": chance}) for metric in made.metrics]
    facts = {"task": made.task, "dataset": made.dataset, "comparisons": made.comparisons}
    return Report.create(made.path.with_name("with-chance"), metrics=metrics, **facts)


def test_the_interval_of_a_mean_is_that_of_resampling_every_set(tmp_path: Path) -> None:
    sizes, rates = (400, 900, 150), (0.3, 0.6, 0.8)
    reports = [report(tmp_path / str(k), k, n, a=rate) for k, (n, rate) in enumerate(zip(sizes, rates, strict=True))]
    [mean], _ = mean_over([score_of(one, []) for one in reports], "mean")
    values = [one.metrics[0].value for one in reports]
    assert mean.value == pytest.approx(np.mean(values))
    rng = np.random.default_rng(0)
    drawn = np.mean([rng.binomial(n, v, 20_000) / n for n, v in zip(sizes, values, strict=True)], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=0.003)


def test_a_gain_has_the_two_sided_p_value_of_its_errors() -> None:
    gain = Estimate.over_sets([("a", Estimate(0.03, 0.01, 0.05)), ("b", Estimate(0.01, -0.01, 0.03))])
    error = 0.04 / (2 * norm.ppf(0.975)) / np.sqrt(2)
    assert gain.value == pytest.approx(0.02)
    assert gain.p_value == pytest.approx(2 * norm.sf(0.02 / error), rel=1e-4)
    assert Estimate(0.0, 0.0, 0.0).p_value == 1.0


def test_interval_of_a_mean_stays_within_0_and_1() -> None:
    none, all_of_them = Estimate(0.0, 0.0, 0.2), Estimate(1.0, 0.8, 1.0)
    assert Estimate.over_sets([("a", none), ("b", none)]).low == 0
    assert Estimate.over_sets([("a", all_of_them), ("b", all_of_them)]).high == 1
    lopsided = Estimate(0.1, -0.1, 0.12)  # the side towards zero decides
    assert lopsided.p_value == pytest.approx(2 * norm.sf(norm.ppf(0.975) / 2), rel=1e-4)


def test_scores_on_one_data_set_count_as_one(tmp_path: Path) -> None:
    same = report(tmp_path / "r", 0, 400, a=0.5, b=0.6)
    [once, _], [gain] = mean_over([score_of(same, [])], "mean")
    [twice, _], [gains] = mean_over([score_of(same, []), score_of(same, [])], "mean")
    assert (twice.low, twice.high, twice.n) == pytest.approx((once.low, once.high, once.n), abs=1e-3)
    assert gains.p_value == pytest.approx(gain.p_value)


def test_metrics_of_one_report_are_dependent(tmp_path: Path) -> None:
    one = report(tmp_path / "r", 0, 100, a=0.5, b=0.6)
    both = score_of(one, ["acc1", "acc5"])
    acc1 = one.metrics[0]
    assert both.values["a"].value == pytest.approx((acc1.value + 1) / 2)
    assert both.values["a"].high - both.values["a"].low == pytest.approx((acc1.high - acc1.low) / 2)
    assert score_of(one, []).p_values["b"] == one.comparisons[0].p_value


def summary(tmp_path: Path, **fields: object) -> tuple[Report, list[TablePanel]]:
    reports = {name: report(tmp_path / name, k, 200, a=0.5, b=0.6) for k, name in enumerate(("one", "two", "three"))}
    reports["alone"] = report(tmp_path / "alone", 9, 50, a=0.5)
    run = run_in(tmp_path / "out", **reports)
    made = ReportSummary(kind="eval.summary", name="all", **fields).run(run.ctx)  # type: ignore[arg-type]
    return made, [panel for panel in load_panels(tmp_path / "out") if isinstance(panel, TablePanel)]


def row(name: str, group: str = "", **more: object) -> SummarisedReport:
    return SummarisedReport.model_validate({"report": name, "group": group, **more})


def test_means_state_their_number_of_sets_and_list_missing_ones(tmp_path: Path) -> None:
    gap = MissingDataset(title="four", group="x", why="not here")
    scores = [row("one", "x"), row("two", "x"), row("three", "y"), row("alone")]
    made, [table, left_out] = summary(tmp_path, scores=scores, missing=[gap])
    names = list(dict.fromkeys(metric.name for metric in made.metrics))
    assert names == ["mean of x: 2 of 3 sets", "mean of y: 1 of 1 sets", "mean of all groups: 3 of 4 sets"]
    assert [len(line) for line in table.rows] == [len(table.columns)] * 7
    assert table.rows[3][-2:] == ["–", "–"]  # a model that was not evaluated has no number and no gain
    assert left_out.rows == [["four", "x", "not here"]]
    assert table.front
    assert left_out.front
    assert all(isinstance(test, Comparison) and test.baseline == "a" for test in made.comparisons)
    raw = [score_of(report(tmp_path / f"{k} again", k, 200, a=0.5, b=0.6), []).p_values["b"] for k in range(3)]
    fixed = holm([*raw, *(test.p_value for test in made.comparisons)])
    written = [str(line[-1]).rpartition(", p ")[2] for line in table.rows if line[-1] != "–"]
    assert written == [number_format.p_value(p_value) for p_value in fixed]
    assert "corrected for the 6 comparisons of this table (Holm)" in table.note


def test_numbers_are_written_as_in_the_tables_of_a_run(tmp_path: Path) -> None:
    _, [table] = summary(tmp_path, scores=[row("one")])
    (line,) = table.rows
    metric = next(one for one in report(tmp_path / "again", 0, 200, a=0.5, b=0.6).metrics if one.model == "a")
    shown = number_format.quantity(metric.value, "share"), number_format.interval(metric.low, metric.high, "share")
    assert line[5] == "{} ({})".format(*shown)
    assert str(line[5]).count("%") == 2
    guess = report(tmp_path / "guess", 0, 200, a=0.5, b=0.6)
    run = run_in(tmp_path / "guessed", one=with_chance(guess, 1 / 36))
    ReportSummary(kind="eval.summary", name="all", scores=[row("one")]).run(run.ctx)
    [guessed] = [panel for panel in load_panels(tmp_path / "guessed") if isinstance(panel, TablePanel)]
    assert guessed.rows[0][4] == number_format.quantity(1 / 36, "share") == "2.8\N{NO-BREAK SPACE}%"


def test_each_way_has_its_own_mean_and_missing_sets(tmp_path: Path) -> None:
    missing = [
        MissingDataset(title="four", group="x", why="not here"),
        MissingDataset(title="two, knn", group="x", ways=["knn"], why="nothing to learn from"),
    ]
    scores = [row("one", "x"), row("two", "x"), row("three", "x", way="knn")]
    made, _ = summary(tmp_path, scores=scores, missing=missing)
    assert list(dict.fromkeys(metric.name for metric in made.metrics)) == [
        "mean of x: 2 of 3 sets",
        "mean of x, knn: 1 of 3 sets",
    ]


def test_a_gain_names_its_baseline_where_the_first_model_was_not_evaluated(tmp_path: Path) -> None:
    reports = {
        "words": report(tmp_path / "words", 1, 200, b=0.5, c=0.7),  # a has no text tower
        "pictures": report(tmp_path / "pictures", 2, 200, a=0.5, b=0.6, c=0.7),
    }
    run = run_in(tmp_path / "out", **reports)
    ReportSummary(kind="eval.summary", name="all", scores=[row("words", "x"), row("pictures", "y")]).run(run.ctx)
    table = next(panel for panel in load_panels(tmp_path / "out") if isinstance(panel, TablePanel))
    assert table.columns[5:] == ["a", "b", "c", "b over a", "c over a"]
    words, pictures, *_ = table.rows
    assert words[5] == words[8] == "–"
    assert " on b, p" in str(words[9])
    assert " on " not in str(pictures[8:])


def test_unknown_metric_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one has no metric 'acc2'; did you mean 'acc"):
        summary(tmp_path, scores=[row("one", metrics=["acc2"])])


def test_mean_is_over_models_evaluated_on_all_sets(tmp_path: Path) -> None:
    made, _ = summary(tmp_path, scores=[row("one", "x"), row("alone", "x")])
    assert [metric.model for metric in made.metrics] == ["a"]  # b was not evaluated on all of them
    assert isinstance(made.metrics[0], Metric)
