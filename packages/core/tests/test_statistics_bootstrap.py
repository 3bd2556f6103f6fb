"""The p-value of a paired resamples: the fraction of resamples, and its tail where no resample is on the other side."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, strategies as st

from vfm.statistics import holm, image_weights, paired_resamples

NUM_METRICS = 14  # of a detection


def gaps_of(values: np.ndarray, seed: int = 0) -> np.ndarray:
    return image_weights(len(values), seed=seed) @ values / (len(values) // 2)


def test_a_clear_difference_stays_clear_among_all_metrics_of_a_detection() -> None:
    clear = paired_resamples(gaps_of(np.random.default_rng(0).normal(0.95, 0.05, 128)), 128)
    family = [clear.p_value, *[0.5] * (NUM_METRICS - 1)]
    assert holm(family)[0] < 0.001
    assert holm([2 / 501, *family[1:]])[0] > 0.05  # what the fraction of 500 resamples alone would say


@given(st.integers(0, 10_000), st.floats(-0.3, 0.3), st.integers(5, 60))
def test_p_is_the_fraction_of_resamples_where_there_is_one(seed: int, mean: float, number: int) -> None:
    gaps = gaps_of(np.random.default_rng(seed).normal(mean, 1, number), seed)
    beyond = min((gaps <= 0).sum(), (gaps >= 0).sum())
    found = paired_resamples(gaps, number)
    if beyond:
        assert found.p_value == min(1, 2 * (1 + beyond) / 501)
    else:
        assert min(2 / 501, 2.0 ** (1 - number)) <= found.p_value <= 2 / 501
    assert found == paired_resamples(np.append(gaps, np.nan), number)


def test_few_units_cannot_be_clear() -> None:
    same = np.array([0.5, 0.5001, 0.4999])  # a deviation near zero, but only three images
    assert paired_resamples(gaps_of(same), 3).p_value == 2 / 501
    assert paired_resamples(gaps_of(np.repeat(same, 4)), 12).p_value == 2.0**-11
    assert paired_resamples(np.full(500, 0.5), 100).p_value == 2 / 501  # no deviation at all, so no tail


def test_the_tail_agrees_with_a_t_test_on_many_normal_items() -> None:
    values = np.random.default_rng(1).normal(0.5, 1.0, 400)
    exact = scipy.stats.ttest_1samp(values, 0).pvalue
    p_values = [paired_resamples(gaps_of(values, seed), 400).p_value for seed in range(20)]
    assert np.log10(np.median(p_values)) == pytest.approx(np.log10(exact), rel=0.15)
