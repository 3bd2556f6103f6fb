"""What comparisons say: corrected for their number, and with one seed never a gain of a method."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from vfm.interfaces import Comparison
from vfm.report.conclusions import ReportedComparison, conclusions, corrected, corrections
from vfm.statistics import corrected_interval, holm, paired_t, t_interval

shares = st.floats(0, 1)


def finding(p_value: float, metric: str = "acc1", report: str = "zero_shot", num_seeds: int = 0) -> ReportedComparison:
    test = Comparison(
        metric=metric, model="diva", baseline="clip", difference=0.021, low=0.0, high=0.04, p_value=p_value, test="t"
    )
    return ReportedComparison(report, test, num_seeds=num_seeds)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine stalls within an example
@given(st.lists(st.tuples(shares, st.booleans()), max_size=10))
def test_comparisons_on_items_and_over_seeds_are_corrected_apart(drawn: list[tuple[float, bool]]) -> None:
    found = corrected([finding(p, num_seeds=3 * seeds) for p, seeds in drawn])
    for kind in (False, True):
        expected = holm([p for p, seeds in drawn if seeds == kind]).tolist()
        assert [one.test.p_value for one in found if bool(one.num_seeds) == kind] == expected
    assert [one.num_seeds for one in found] == [3 * seeds for _, seeds in drawn], "their order stays"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(shares, st.floats(0.001, 0.5), st.floats(0.001, 0.5), st.booleans()), min_size=1, max_size=9))
def test_an_interval_excludes_zero_exactly_if_the_corrected_p_is_small(
    drawn: list[tuple[float, float, float, bool]],
) -> None:
    findings = []
    for p, down, up, seeds in drawn:  # any interval, since exact tests and intervals may disagree
        one = finding(p, num_seeds=3 * seeds)
        interval = {"low": one.test.difference - down, "high": one.test.difference + up}
        findings.append(replace(one, test=one.test.model_copy(update=interval)))
    for before, after in zip(findings, corrected(findings), strict=True):
        excludes = after.test.low > 0 or after.test.high < 0
        assert excludes == (after.test.p_value <= 0.05)
        if not excludes:
            assert after.test.low <= before.test.low
            assert after.test.high >= before.test.high


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(1, 12), st.integers(0, 1000))
def test_intervals_over_seeds_are_those_of_students_test_at_the_level_of_holm(n: int, others: int, seed: int) -> None:
    gaps = np.random.default_rng(seed).normal(0.5, 1.0, size=n)
    interval, p = paired_t(np.zeros(n), gaps)
    family = [p, *np.linspace(p, 1, others)]
    ends = corrected_interval(float(gaps.mean()), interval, p, family, num_seeds=n)
    expected = t_interval(gaps, confidence=1 - 0.05 / len(family))
    assert (expected[0] > 0 or expected[1] < 0) == (ends[0] > 0 or ends[1] < 0)
    if not np.allclose(ends, expected):  # the end nearer to zero is at zero, by rounding at the limit
        assert min(map(abs, ends)) == 0


def test_one_seed_says_which_models_differ_on_these_items() -> None:
    found = corrected([finding(0.001), finding(0.012, "acc5"), finding(0.04, "recall")])
    assert conclusions(found) == [
        "zero_shot: diva and clip differ on these items: top-1 accuracy +2.1, top-5 accuracy +2.1, recall +2.1.",
        "Whether a method makes the difference needs several seeds.",
    ]
    found = corrected([finding(0.02), finding(0.03, "acc5"), finding(0.04, "recall")])  # each alone is below 0.05
    assert conclusions(found) == [
        "Of 3 comparisons on the same items none is clear (corrected p at most 0.05): these items do not separate the"
        " models."
    ]
    assert corrections(found) == [
        "p-values and the intervals of differences are corrected for 3 comparisons on the same items (Holm)."
    ]


def test_several_seeds_say_what_the_method_does() -> None:
    found = corrected([finding(0.01, num_seeds=5), finding(1e-9, report="zero_shot@0")])
    assert conclusions(found) == ["zero_shot: over 5 seeds, diva changes top-1 accuracy +2.1 against clip."]
    assert "1 comparison on the same items and for 1 comparison over seeds" in corrections(found)[0]
    lines = conclusions(corrected([finding(0.2, num_seeds=5)]))
    assert lines == [
        "The only comparison over the seeds is not clear (corrected p at most 0.05): these seeds do not separate the"
        " methods."
    ]


@pytest.mark.parametrize("count", [5, 9])
def test_a_long_list_of_metrics_is_cut(count: int) -> None:
    (line, _) = conclusions([finding(0.0, f"metric{number}") for number in range(count)])
    assert line.endswith(f"metric3 +2.1, {count - 4} more.")


def test_a_comparison_of_scores_that_are_nan_says_nothing_and_spoils_nothing() -> None:
    found = corrected([finding(math.nan), finding(0.04, "acc5"), finding(math.nan, num_seeds=3)])
    assert found[1].test.p_value == 0.04, "it is the only one"
    assert conclusions(found)[0] == "zero_shot: diva and clip differ on these items: top-5 accuracy +2.1."
    assert corrections(found)[0].endswith("are corrected for 1 comparison on the same items (Holm).")


def test_nothing_compared_says_nothing() -> None:
    assert corrected([]) == conclusions([]) == corrections([]) == []
