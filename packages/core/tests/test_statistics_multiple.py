"""Holm's correction: a published example, the definition step by step, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from vfm.statistics import holm

families = st.lists(st.floats(0, 1), max_size=12)


def rejected_step_by_step(p_values: list[float], alpha: float) -> list[bool]:
    """Holm's own words: reject the smallest as long as it is at most alpha / (number of hypotheses that are left)."""
    rejected = [False] * len(p_values)
    for done, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if p_values[place] > alpha / (len(p_values) - done):
            break
        rejected[place] = True
    return rejected


def test_published_example() -> None:
    # The worked example of Wikipedia's "Holm-Bonferroni method": at 0.05 the first and the fourth are rejected.
    # By hand: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not be smaller than the one before it.
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert (corrected <= 0.05).tolist() == [True, False, False, True]
    assert holm([0.022, 0.041, 0.001, 0.8, 0.009]) == pytest.approx([0.066, 0.082, 0.005, 0.8, 0.036])  # by hand


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(families, st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_rejects_what_the_procedure_rejects(p_values: list[float], alpha: float) -> None:
    at_the_edge = [abs(p * left - alpha) < 1e-12 for p in p_values for left in range(1, len(p_values) + 1)]
    if not any(at_the_edge):  # there, rounding decides
        assert (holm(p_values) <= alpha).tolist() == rejected_step_by_step(p_values, alpha)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(families, st.randoms())
def test_lies_between_no_correction_and_bonferroni_and_knows_no_order(p_values: list[float], random) -> None:
    corrected = holm(p_values)
    assert np.all(corrected >= np.array(p_values))
    assert np.all(corrected <= np.minimum(1, len(p_values) * np.array(p_values)))
    assert [b for _, b in sorted(zip(p_values, corrected, strict=True))] == sorted(corrected)
    places = list(range(len(p_values)))
    random.shuffle(places)
    assert holm([p_values[place] for place in places]).tolist() == corrected[places].tolist()


@pytest.mark.parametrize("wrong", [[-0.1], [1.5], [float("inf")], [[0.5]]])
def test_what_is_no_p_value_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected p-values \(N,\) within 0\.\.1"):
        holm(wrong)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(families, st.lists(st.integers(0, 12), max_size=3))
def test_tests_that_could_not_be_made_are_not_in_the_family(p_values: list[float], places: list[int]) -> None:
    mixed = np.insert(p_values, [min(place, len(p_values)) for place in places], np.nan)
    corrected = holm(mixed)
    assert np.isnan(corrected).tolist() == np.isnan(mixed).tolist()
    assert corrected[~np.isnan(mixed)].tolist() == holm(p_values).tolist()
