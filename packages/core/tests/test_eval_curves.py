"""Loss spikes and samples to a score, compared with loops and with values by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from eval_world import tiny_clip
from vfm import Context, UserError
from vfm.eval.compare.curves import TrainingCurves, loss_spikes, mean_over_log_samples, samples_to_reach
from vfm.eval.compare.stages import CurveComparison
from vfm.interfaces import Preflight, load_panels


@given(st.lists(st.floats(0, 10), max_size=60), st.integers(3, 9), st.floats(0.5, 5))
def test_spikes_equal_a_loop(loss, window, num_mads):
    expected = []
    for step in range(window, len(loss)):
        before = np.array(loss[step - window : step])
        median = np.median(before)
        expected.append(loss[step] > median + num_mads * np.median(abs(before - median)))
    assert loss_spikes(loss, window=window, num_mads=num_mads).tolist() == expected


def test_planted_spikes_are_all_found():
    loss = 2 + 0.1 * np.sin(np.arange(200))
    loss[[120, 122, 124]] = 9.0
    assert (np.flatnonzero(loss_spikes(loss, window=51, num_mads=3.0)) + 51).tolist() == [120, 122, 124]


@pytest.mark.parametrize(("goal", "samples"), [(0.1, 100), (0.2, 200), (0.25, 250), (0.3, 300), (0.31, None)])
def test_samples_to_reach_a_score(goal, samples):
    assert samples_to_reach([(100, 0.1), (200, 0.2), (300, 0.3)], goal) == (samples and pytest.approx(samples))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.integers(1, 50))
def test_the_mean_over_log_samples_is_one_over_a_fine_grid(scores, step):
    samples = [step * 3**number for number in range(len(scores))]
    grid = np.linspace(np.log(samples[0]), np.log(samples[-1]), 20_001)
    mean = np.interp(grid, np.log(samples), scores).mean()
    assert mean_over_log_samples([(0, 0.5), *zip(samples, scores, strict=True)]) == pytest.approx(mean, abs=1e-3)
    assert mean_over_log_samples([(0, 0.5), (samples[0], scores[0])]) is None


def trained(folder: Path, scores: list[float], loss: float = 1.0) -> Path:
    checkpoint = tiny_clip(folder, 0)
    lines: list[dict[str, object]] = []
    for step in range(1, 81):
        lines.append({"step": step, "samples": 8 * step, "split": "train", "train/loss": 9.0 if step == 70 else loss})
        if step % 20 == 0:
            value = scores[step // 20 - 1]
            lines.append({"step": step, "samples": 8 * step, "split": "val", "eval": "zero_shot", "val/acc1": value})
    (checkpoint.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return checkpoint.path


def test_stage_compares_trainings_with_the_first(tmp_path):
    inputs = {"slow": trained(tmp_path / "slow", [0.1, 0.2, 0.3, 0.4]), "fast": trained(tmp_path / "fast", [0.4] * 4)}
    ctx = Context("curves", tmp_path / "out", tmp_path / "work", inputs)
    report = CurveComparison(name="curves", models=list(inputs)).run(ctx)
    found = {(m.model, m.name): m.value for m in report.metrics}
    assert found["slow", "samples_to_reach"] == 640
    assert found["fast", "samples_to_reach"] == 160
    assert found["fast", "mean_over_log_samples"] == pytest.approx(0.4)
    # Doublings count alike: from 160 to 320 samples the mean is 0.15, then 0.25 and 0.35 for shorter stretches.
    widths = np.log([2, 1.5, 4 / 3])
    assert found["slow", "mean_over_log_samples"] == pytest.approx(widths @ [0.15, 0.25, 0.35] / widths.sum())
    assert found["slow", "loss_spikes"] == pytest.approx(1 / 29)
    assert {panel.title for panel in load_panels(tmp_path / "out")} == {"Losses", "Scores"}
    assert TrainingCurves.read(inputs["slow"] / "metrics.jsonl").steps == list(range(1, 81))


def test_unknown_scores_and_models_without_metrics_are_refused(tmp_path):
    inputs = {"a": trained(tmp_path / "a", [0.1, 0.2, 0.3, 0.4]), "b": tiny_clip(tmp_path / "b", 1).path}
    ctx = Context("curves", tmp_path / "out", tmp_path / "work", inputs)
    with pytest.raises(UserError, match=r"a did not log val/acc; did you mean 'val/acc1'\?"):
        CurveComparison(name="c", models=["a"], score="val/acc").run(ctx)
    with pytest.raises(UserError, match=r"b: has no metrics\.jsonl"):
        CurveComparison(name="c", models=["a", "b"]).run(ctx)


def test_two_trainings_with_one_name_are_refused_before_the_run():
    with pytest.raises(UserError, match="models: 'clip' is named more than once"):
        CurveComparison(name="c", models=["one/clip", "two/clip"]).preflight(Preflight({}, {}))


def test_spikes_are_reported_only_where_every_step_was_logged(tmp_path):
    """Means over several steps flatten spikes, so their share would not be comparable."""
    folder, messages = trained(tmp_path / "a", [0.1, 0.2, 0.3, 0.4]), []
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] % 2 == 0))
    ctx = Context("curves", tmp_path / "out", tmp_path / "work", {"a": folder}, messages.append)
    report = CurveComparison(name="c", models=["a"], window=5).run(ctx)
    assert [metric.name for metric in report.metrics] == ["samples_to_reach", "mean_over_log_samples"]
    assert "train with log_every: 1" in messages[0].data["message"]
