"""The law of feedback: an exact law is recovered, held-out predictions use the other half, the stages agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from diva_families import add_text_encoder
from diva_toy import WORLD, make_clip, make_stable_diffusion, run
from vfm.data.synthetic.stages import ShapesChoices
from vfm.interfaces import LinesPanel, TablePanel, load_panels
from vfm.plugin import (
    ChoiceDataset,
    ClipCheckpoint,
    GeneratorCheckpoint,
    Metric,
    Report,
    UserError,
)
from vfm_diva.forecast.law import explained_share, exposure, fit_law, predict_held_out
from vfm_diva.forecast.stages import DivaLaw, DivaPredict

shares = st.floats(0, 1)
cells = st.lists(st.tuples(shares, shares), min_size=2, max_size=20)


@given(cells=cells, slope=st.floats(-3, 3))
def test_gains_by_an_exact_law_give_its_slope_and_no_spread(cells: list[tuple[float, float]], slope: float) -> None:
    x = exposure(*zip(*cells, strict=True))
    if float(x @ x) < 1e-6:
        return
    law = fit_law(x, slope * x)
    assert law.slope == pytest.approx(slope, abs=1e-9)
    assert law.spread == pytest.approx(0, abs=1e-9)
    gains, widths = law.predict(x)
    np.testing.assert_allclose(gains, slope * x, atol=1e-9)
    assert (widths < 1e-6).all()


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(4, 30))
def test_a_held_out_prediction_does_not_depend_on_its_own_half(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, first = rng.uniform(-0.1, 0.5, count), rng.normal(size=count), np.arange(count) % 2 == 0
    before = predict_held_out(x, y, first)
    after = predict_held_out(x, np.where(first, rng.normal(size=count), y), first)
    np.testing.assert_array_equal(before[first], after[first])
    assert not np.allclose(before[~first], after[~first])


def test_the_interval_covers_new_gains_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        x, new = rng.uniform(0, 0.5, 12), rng.uniform(0, 0.5)
        gain, width = fit_law(x, 0.8 * x + 0.05 * rng.normal(size=12)).predict(new)
        covered.append(abs(0.8 * new + 0.05 * rng.normal() - gain) < width)
    assert 0.92 < np.mean(covered) < 0.975


def test_nothing_known_or_nothing_lacking_means_no_exposure() -> None:
    np.testing.assert_array_equal(exposure([0.5, 0.9], [0.2, 1.0]), [0.0, 0.0])
    with pytest.raises(ValueError, match="exposure other than 0"):
        fit_law([0, 0], [1, 2])


def test_explained_share_is_that_of_the_variance() -> None:
    gains = np.array([0.0, 0.1, 0.5])
    assert explained_share(gains, gains) == 1
    assert explained_share(np.full(3, gains.mean()), gains) == pytest.approx(0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ChoiceDataset:
    world = WORLD.model_copy(update={"attributes": ("size",)})
    return run(ShapesChoices(name="pairs", world=world, pairs_per_pattern=6), tmp_path_factory.mktemp("pairs"))


def predicted(folder: Path, clip: ClipCheckpoint, generator: GeneratorCheckpoint, pairs: ChoiceDataset) -> Report:
    stage = DivaPredict(name="predict", clip="clip", generator="prior", data="pairs", runtime={"device": "cpu"})
    return run(stage, folder, clip=clip, prior=generator, pairs=pairs)


def by_name(report: Report) -> dict[str, Metric]:
    return {metric.name: metric for metric in report.metrics}


def test_prediction_is_the_law_of_what_is_reported(
    tmp_path: Path, clip: ClipCheckpoint, prior: GeneratorCheckpoint, pairs: ChoiceDataset
) -> None:
    from vfm_diva.forecast.law import LAW

    report = by_name(predicted(tmp_path, clip, prior, pairs))
    for pattern in ("size", "colour"):
        x = exposure(report[f"preference/{pattern}"].value, report[f"accuracy/{pattern}"].value)
        gain, width = LAW.predict(x)
        metric = report[f"gain/{pattern}"]
        assert metric.value == pytest.approx(float(gain))
        assert metric.high - metric.value >= float(width) - 1e-9  # wider if images and pairs are few
    assert report["gain"].value == pytest.approx((report["gain/size"].value + report["gain/colour"].value) / 2)
    (table,) = [panel for panel in load_panels(tmp_path / "part") if panel.title.startswith("What the generator")]
    assert isinstance(table, TablePanel)
    assert [row[0] for row in table.rows] == ["colour", "size", "all"]


def test_pretrained_generator_with_random_weights_knows_nothing(
    tmp_path: Path, clip: ClipCheckpoint, pairs: ChoiceDataset
) -> None:
    generator = make_stable_diffusion(tmp_path)
    add_text_encoder(generator.path, "StableDiffusionPipeline")
    report = by_name(predicted(tmp_path / "report", clip, generator, pairs))
    for pattern in ("size", "colour"):
        assert report[f"preference/{pattern}"].low <= 0.5 <= report[f"preference/{pattern}"].high


def test_generator_of_another_clip_is_refused(tmp_path: Path, prior: GeneratorCheckpoint, pairs: ChoiceDataset) -> None:
    with pytest.raises(UserError, match="was trained on another CLIP model"):
        predicted(tmp_path / "report", make_clip(tmp_path / "clip", seed=7), prior, pairs)


def test_generator_without_text_encoders_is_refused(tmp_path: Path, clip: ClipCheckpoint, pairs: ChoiceDataset) -> None:
    generator = make_stable_diffusion(tmp_path)
    with pytest.raises(UserError, match=r"no model_index\.json found, so the prompt cannot be encoded"):
        predicted(tmp_path / "report", clip, generator, pairs)


def measured(folder: Path, pairs: dict[str, dict[str, float]]) -> Report:
    """Return a report of pair accuracies by model and attribute."""
    metrics = [
        Metric(name=f"pair_accuracy/{pattern}", value=value, n=9, low=0, high=1, model=model)
        for model, values in pairs.items()
        for pattern, value in values.items()
    ]
    return Report.create(folder, task="mmvp_vlm", dataset="pairs", metrics=metrics)


def forecast(folder: Path, preferences: dict[str, float], accuracies: dict[str, float]) -> Report:
    metrics = [
        Metric(name=f"{kind}/{pattern}", value=value, n=9, low=0, high=1)
        for kind, values in (("preference", preferences), ("accuracy", accuracies))
        for pattern, value in values.items()
    ]
    return Report.create(folder, task="diva_predict", dataset="known", metrics=metrics)


BEFORE = {"size": 0.5, "count": 0.25}
PREFERENCES = {"feedback": {"size": 0.9, "count": 0.8}, "weak": {"size": 0.6, "count": 0.5}}


def law_inputs(folder: Path, slope: float) -> tuple[DivaLaw, dict[str, Any]]:
    """Return a stage whose gains follow the law of a slope, and its inputs."""
    after = {
        arm: {name: BEFORE[name] + slope * (known - 0.5) * (1 - BEFORE[name]) for name, known in preferences.items()}
        for arm, preferences in PREFERENCES.items()
    }
    arms = [{"predicted": f"of_{arm}", "before": "clip", "after": arm} for arm in PREFERENCES]
    inputs = {f"of_{arm}": forecast(folder / arm, known, BEFORE) for arm, known in PREFERENCES.items()}
    inputs["mmvp"] = measured(folder / "mmvp", {"clip": BEFORE, **after})
    return DivaLaw(name="law", measured="mmvp", arms=arms), inputs


def test_law_stage_finds_the_slope_of_its_cells_and_draws_them(tmp_path: Path) -> None:
    stage, inputs = law_inputs(tmp_path, 0.8)
    report = run(stage, tmp_path, **inputs)
    metrics = {(metric.name, metric.model): metric for metric in report.metrics}
    assert metrics["slope", "law"].value == pytest.approx(0.8)
    assert metrics["error", "law"].value == pytest.approx(0, abs=1e-12)
    assert metrics["error", "mean"].value > 0.02
    assert metrics["explained", "law"].value == pytest.approx(1)
    cells = pq.read_table(tmp_path / "part" / "cells.parquet").to_pylist()
    assert [(cell["arm"], cell["pattern"]) for cell in cells] == [
        (arm, pattern) for arm in PREFERENCES for pattern in BEFORE
    ]
    chart, _ = load_panels(tmp_path / "part")
    assert isinstance(chart, LinesPanel)
    assert chart.series[0].marks
    assert chart.series[0].x == pytest.approx(chart.series[0].y)


def test_law_stage_names_the_model_that_was_not_evaluated(tmp_path: Path) -> None:
    stage, inputs = law_inputs(tmp_path, 0.8)
    inputs["mmvp"] = measured(tmp_path / "less", {"clip": BEFORE, "feedback": BEFORE})
    with pytest.raises(UserError, match=r"mmvp: expected pair_accuracy/size of weak, got none"):
        run(stage, tmp_path, **inputs)


def test_arms_are_different_models() -> None:
    arm = {"predicted": "of", "before": "clip", "after": "feedback"}
    with pytest.raises(ValidationError, match="got 'feedback' more than once"):
        DivaLaw(name="law", measured="mmvp", arms=[arm, arm])
