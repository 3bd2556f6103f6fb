"""As how many tests metrics count that share resamples: from one, if they are equal, to their number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from vfm.statistics import (
    Accuracy,
    ResampledScore,
    compare,
    compare_models,
    effective_tests,
    holm,
    image_weights,
    paired_resamples,
)

NUM_METRICS = 8


def gaps_of(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean of each metric over resampled images, (M, R), from values (I, M)."""
    return (image_weights(len(values), seed=seed) @ values / (len(values) // 2)).T


def alike(rng: np.random.Generator, rho: float, images: int = 100) -> np.ndarray:
    """Values of metrics with this correlation, (I, M)."""
    common = rng.normal(size=(images, 1))
    return np.sqrt(rho) * common + np.sqrt(1 - rho) * rng.normal(size=(images, NUM_METRICS))


def test_equal_metrics_count_as_one_test_and_independent_ones_as_their_number() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(200, 1))
    assert effective_tests(gaps_of(np.repeat(one, 5, axis=1))) == pytest.approx(1, abs=0.35)
    sizes = [np.mean([effective_tests(gaps_of(alike(rng, rho), s)) for s in range(10)]) for rho in (0.0, 0.5, 0.95)]
    assert sizes[0] > 0.75 * NUM_METRICS
    assert sizes[0] > sizes[1] > sizes[2] > 1
    assert sizes[2] < 0.6 * NUM_METRICS
    assert effective_tests(np.zeros((3, 500))) == 1
    assert effective_tests(np.full((3, 500), np.nan)) == 3


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_a_false_call_among_the_metrics_of_an_evaluation_is_rare(rho: float) -> None:
    rng = np.random.default_rng(1)
    trials, false = 300, 0
    for trial in range(trials):
        gaps = gaps_of(alike(rng, rho), trial)
        p_values = [paired_resamples(row, 100).p_value for row in gaps]
        counts = [effective_tests(gaps) / NUM_METRICS] * NUM_METRICS
        false += bool((holm(p_values, counts) <= 0.05).any())
    assert false / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0.01, 1))
def test_holm_of_tests_that_count_less_lies_between_no_correction_and_all(p_values: list[float], share: float) -> None:
    fewer = holm(p_values, [share] * len(p_values))
    assert (fewer >= np.array(p_values)).all()
    assert (fewer <= holm(p_values)).all()
    assert holm(p_values, np.ones(len(p_values))).tolist() == holm(p_values).tolist()


def score(metric: str, seed: int, shift: float = 0.0) -> ResampledScore:
    values = np.random.default_rng(seed).normal(0.5 + shift, 0.1, 60)
    return ResampledScore(metric, float(values.mean()), 60, lambda s: image_weights(60, seed=s) @ values / 30)


def test_only_further_metrics_on_the_same_resamples_count_less() -> None:
    right = np.random.default_rng(0).random(60) < 0.5
    before = [score("ap", 0), score("ap50", 1), score("ap75", 1), Accuracy("acc", right)]
    after = [score("ap", 2), score("ap50", 3), score("ap75", 3), Accuracy("acc", ~right)]
    compared = compare_models(before, after, baseline="a", model="b")
    assert [one.metric for one in compared] == ["ap", "ap50", "ap75", "acc"]
    assert [one.counts_as == 1 for one in compared] == [True, False, False, True]
    assert compared[1].counts_as == compared[2].counts_as == pytest.approx(0.5, abs=0.15)  # two equal metrics
    plain = compare(before[1], after[1], baseline="a", model="b")
    assert compared[1].model_copy(update={"counts_as": 1.0}) == plain
