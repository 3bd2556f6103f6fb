"""Few-shot classification: scikit-learn's solution from zero weights, zero-shot where the penalty is large."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression

from eval_world import ColourModel, labeled, run_in, tiny_clip
from vfm.base import UserError
from vfm.eval.classify.few_shot import FewShotSettings, draw_shots, fit_few_shot, score_few_shot
from vfm.eval.classify.stages import FewShot

ORACLES = {"right": ColourModel(), "wrong": ColourModel(-1.0)}


def images(seed: int, size: int, classes: int = 4, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size) % classes)
    features = rng.normal(size=(size, width)) + np.eye(classes, width)[labels]
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


@pytest.mark.parametrize("penalty", [0.02, 0.5])
def test_from_zero_weights_it_equals_scikit_learns_logistic_regression(penalty: float) -> None:
    x, labels = images(0, 40)
    peer = LogisticRegression(C=4 / (penalty * len(x)), fit_intercept=False, tol=1e-9, max_iter=10_000).fit(x, labels)
    found = fit_few_shot(x, labels, np.zeros((4, 6)), penalty=penalty)
    np.testing.assert_allclose(found - found.mean(axis=0), peer.coef_ - peer.coef_.mean(axis=0), atol=1e-4)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([0.05, 0.3, 2.0]))
def test_solution_is_a_minimum_and_weights_move_no_further_than_the_bound(seed: int, penalty: float) -> None:
    x, labels = images(seed, 24)
    start = 3 * np.random.default_rng(seed).normal(size=(4, 6))
    found = fit_few_shot(x, labels, start, penalty=penalty)

    def loss(weights: np.ndarray) -> float:
        scores = x @ weights.T
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return float(-logs[np.arange(24), labels].mean() + penalty / 8 * np.square(weights - start).sum())

    for direction in np.random.default_rng(seed + 1).normal(size=(5, 4, 6)):
        assert loss(found) <= loss(found + 1e-3 * direction) + 1e-9
    assert np.linalg.norm(found - start, axis=1).mean() <= 2 / penalty


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 99))
def test_shots_are_drawn_per_class_without_repeats_and_reproducibly(labels: list[int], shots: int, seed: int) -> None:
    given_labels = np.array(labels)
    some = draw_shots(given_labels, shots, seed)
    assert len(set(some.tolist())) == len(some)
    for label in set(labels):
        assert (given_labels[some] == label).sum() == min(shots, labels.count(label))
    assert (some == draw_shots(given_labels, shots, seed)).all()


def few_shot_results(folder: Path, *, words: bool, penalty: float = 0.1, draws: int = 2) -> dict:
    train, test = labeled(folder / "train", 70), labeled(folder / "test", 21)
    settings = FewShotSettings([1, 4], draws, words, penalty)
    return score_few_shot(run_in(folder / "out").ctx, ORACLES, train, test, settings).results


def test_few_images_suffice_for_separable_features(tmp_path: Path) -> None:
    for result in few_shot_results(tmp_path, words=False).values():
        assert {v.metric: v.value for v in result.scores} == {"fs1_acc1": 1, "fs4_acc1": 1}
        assert result.scores[0].num_independent == 21  # two draws on the same images are not more evidence
        columns = result.predictions["images"]
        right = np.array(columns["predicted"]) == np.array(columns["label"])
        assert right[np.array(columns["shots"]) == 4].mean() == 1
        assert len(columns["key"]) == 2 * 2 * 21


def test_zero_shot_decides_at_a_large_penalty_and_images_at_a_small_one(tmp_path: Path) -> None:
    held = few_shot_results(tmp_path / "held", words=True, penalty=1e6)
    assert [held[name].scores[0].value for name in ORACLES] == [1, 0]  # as zero-shot
    free = few_shot_results(tmp_path / "free", words=True, penalty=1e-3)
    assert free["wrong"].scores[1].value == 1


def test_stage_reports_each_number_of_shots_and_each_draw(tmp_path: Path) -> None:
    train, test, clip = labeled(tmp_path / "train", 21), labeled(tmp_path / "test", 14), tiny_clip(tmp_path / "clip", 0)
    run = run_in(tmp_path / "out", train=train, test=test, clip=clip)
    stage = FewShot(
        kind="eval.few_shot",
        name="f",
        models=["clip"],
        train="train",
        data="test",
        shots=[2, 1],
        draws=2,
        start="zero_shot",
    )
    report = stage.run(run.ctx)
    assert [m.name for m in report.metrics] == ["fs1_acc1", "fs2_acc1"]
    (file,) = (tmp_path / "out" / "results").glob("*.json")
    result = json.loads(file.read_text())
    for name, metric in (("1", report.metrics[0]), ("2", report.metrics[1])):
        assert np.mean(result["by_draw"][name]) == pytest.approx(metric.value)
        assert (metric.n, metric.chance) == (14, pytest.approx(1 / 7))


def test_missing_classes_text_towers_and_shots_are_refused(tmp_path: Path) -> None:
    train, test = labeled(tmp_path / "train", 5, classes=7), labeled(tmp_path / "test", 21)
    run = run_in(tmp_path / "out")
    with pytest.raises(UserError, match="train: class 'magenta' has no training image"):
        score_few_shot(run.ctx, ORACLES, train, test, FewShotSettings([1], 1, False, 0.1))

    class Blind:
        encode_images = ColourModel().encode_images

    with pytest.raises(UserError, match="blind: start: zero_shot needs a text tower"):
        score_few_shot(run.ctx, {"blind": Blind()}, train, test, FewShotSettings([1], 1, True, 0.1))  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="shots must be at least 1, got 0"):
        FewShot(kind="eval.few_shot", name="f", train="a", data="b", shots=[0])
