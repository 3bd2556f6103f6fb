"""What comparisons say: corrected for their number, and with one seed never a gain of a method."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from vfm.interfaces import Comparison
from vfm.report.conclusions import ReportedComparison, corrected, corrections
from vfm.report.decisions import decisions
from vfm.report.power_charts import power_charts
from vfm.statistics import corrected_interval, detectable_difference, holm, paired_t, t_interval

shares = st.floats(0, 1)


def finding(
    p_value: float, metric: str = "acc1", report: str = "zero_shot", num_seeds: int = 0, **more: Any
) -> ReportedComparison:
    facts = {"difference": 0.021, "low": 0.0, "high": 0.04, "counts_as": more.pop("counts_as", 1.0)}
    test = Comparison(metric=metric, model="diva", baseline="clip", p_value=p_value, test=f"t of {metric}", **facts)
    return ReportedComparison(report, test, num_seeds=num_seeds, **more)


kinds = st.tuples(shares, st.booleans(), st.booleans())


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine stalls within an example
@given(st.lists(kinds, max_size=10))
def test_main_and_further_comparisons_on_items_and_over_seeds_are_corrected_apart(
    drawn: list[tuple[float, bool, bool]],
) -> None:
    findings = [
        finding(p, f"metric{number}", num_seeds=3 * seeds, main=main) for number, (p, seeds, main) in enumerate(drawn)
    ]
    fixed = corrected(findings)
    for kind in ((False, False), (False, True), (True, False), (True, True)):
        expected = holm([p for p, seeds, main in drawn if (seeds, main) == kind]).tolist()
        assert [one.test.p_value for one in fixed if one.kind == kind] == expected
    assert [(one.num_seeds, one.main) for one in fixed] == [(3 * seeds, main) for _, seeds, main in drawn]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(kinds, st.floats(0.001, 0.5), st.floats(0.001, 0.5), st.floats(0.01, 1)), min_size=1, max_size=9)
)
def test_an_interval_excludes_zero_exactly_if_the_corrected_p_is_small(
    drawn: list[tuple[tuple[float, bool, bool], float, float, float]],
) -> None:
    findings = []
    for (p, seeds, main), down, up, counts_as in drawn:  # any interval, since exact tests and intervals may disagree
        one = finding(p, num_seeds=3 * seeds, main=main, counts_as=counts_as)
        interval = {"low": one.test.difference - down, "high": one.test.difference + up}
        findings.append(replace(one, test=one.test.model_copy(update=interval)))
    for before, after in zip(findings, corrected(findings), strict=True):
        excludes = after.test.low > 0 or after.test.high < 0
        assert excludes == (after.test.p_value <= 0.05)
        assert not (excludes and after.test.p_value == 1)
        assert after.test.p_value >= before.test.p_value
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


def test_the_first_line_says_which_model_is_better_on_these_items() -> None:
    fixed = corrected([finding(0.012, "acc5", main=False), finding(0.04, "recall", main=False), finding(0.001, n=1200)])
    assert decisions(fixed) == [
        "zero_shot: diva is better than clip on these 1,200 items: top-1 accuracy +2.1 points (+0.0 to +4.0).",
        "zero_shot: further clear differences of diva from clip: top-5 accuracy +2.1, recall +2.1.",
        "Whether a method makes the difference needs several seeds.",
    ]
    assert corrections(fixed) == [
        "p-values and the intervals of differences are corrected for 1 main comparison on the same items and, apart,"
        " for 2 further comparisons on the same items (Holm)."
    ]
    worse = finding(0.001)
    worse = replace(worse, test=worse.test.model_copy(update={"difference": -0.02, "low": -0.03, "high": -0.01}))
    assert decisions(corrected([worse]))[0].startswith("zero_shot: diva is worse than clip on these items: ")
    assert decisions(corrected([replace(worse, unit="nats")]))[0].startswith("zero_shot: diva differs from clip")


def test_models_that_cannot_be_told_apart_have_the_size_that_would_be_seen() -> None:
    fixed = corrected([finding(0.2, n=300), finding(0.01, "acc5", main=False)])
    ends = (fixed[0].test.low, fixed[0].test.high)
    assert ends == (0.0, 0.04)
    size = 100 * (0.04 / 2 / 1.959964) * (1.959964 + 0.841621)
    assert decisions(fixed)[0] == (
        "zero_shot: these 300 items do not distinguish diva from clip: top-1 accuracy +2.1 points (+0.0 to +4.0)."
        f" A difference of {size:.1f} points would be seen in 80 % of cases."
    )
    (chart,) = power_charts(fixed).values()
    assert f"With these 300 items a difference of {size:.1f} points is seen in 80 % of cases" in chart.note
    assert (chart.series[0].x[2], chart.series[0].y[2]) == (300, pytest.approx(size))
    assert chart.series[0].y[4] == pytest.approx(size / 2)  # four times the items


def test_a_detectable_difference_is_seen_in_80_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    for n, seeds, error in ((400, 0, 0.05), (6, 6, 0.1)):  # six values estimate their deviation poorly
        intervals = [paired_t(np.zeros(n), rng.normal(0, 1, n))[0] for _ in range(400)]
        size = np.mean([detectable_difference(ends, num_seeds=seeds) for ends in intervals])
        seen = [paired_t(np.zeros(n), rng.normal(size, 1, n))[1] <= 0.05 for _ in range(1000)]
        assert np.mean(seen) == pytest.approx(0.8, abs=error)


def test_several_seeds_say_what_the_method_does() -> None:
    fixed = corrected([finding(0.01, num_seeds=5), finding(1e-9, report="zero_shot@0")])
    (line,) = decisions(fixed)
    assert line.startswith("zero_shot: over 5 seeds, diva changes top-1 accuracy +2.1 points (")
    assert line.endswith(") against clip.")
    assert "1 main comparison on the same items and, apart, for 1 main comparison over seeds" in corrections(fixed)[0]
    (line,) = decisions(corrected([finding(0.2, num_seeds=5)]))
    assert line.startswith("zero_shot: 5 seeds do not distinguish diva from clip: top-1 accuracy +2.1 points (")


@pytest.mark.parametrize("count", [5, 9])
def test_a_long_list_of_metrics_is_cut(count: int) -> None:
    (line, _) = decisions([finding(0.0, f"metric{number}", main=False) for number in range(count)])
    assert line.endswith(f"metric3 +2.1, {count - 4} more.")
    lines = decisions([finding(float(number > 1), report=f"report{number}", n=9) for number in reversed(range(count))])
    assert [line.partition(":")[0] for line in lines[:3]] == ["report1", "report0", f"report{count - 1}"]
    if count > 6:
        assert lines[6] == "3 more comparisons of main metrics, 0 of them clear."


def test_a_comparison_of_scores_that_are_nan_says_nothing_and_spoils_nothing() -> None:
    fixed = corrected([finding(math.nan), finding(0.04, "acc5"), finding(math.nan, num_seeds=3)])
    assert fixed[1].test.p_value == 0.04, "it is the only one"
    assert decisions(fixed)[0].startswith("zero_shot: diva is better than clip on these items: top-5 accuracy +2.1")
    assert corrections(fixed)[0].endswith("are corrected for 1 main comparison on the same items (Holm).")


def test_a_comparison_that_an_ablation_repeats_counts_once() -> None:
    test = finding(0.03)
    repeated = replace(test, report="gains", test=test.test.model_copy(update={"metric": "a step: top-1 accuracy"}))
    fixed = corrected([test, repeated])
    assert [one.test.p_value for one in fixed] == pytest.approx([0.03, 0.03])
    assert [line.split(":")[0] for line in decisions(fixed)][:-1] == ["zero_shot"]
    assert corrected([test, finding(0.03, "another")])[0].test.p_value == 0.06


def test_metrics_that_move_together_count_as_fewer_tests() -> None:
    fixed = corrected([finding(0.02, f"metric{number}", main=False, counts_as=0.25) for number in range(4)])
    assert [one.test.p_value for one in fixed] == [0.02] * 4
    assert "4 further comparisons on the same items, which count as 1 (Holm)" in corrections(fixed)[0]


def test_nothing_compared_says_nothing() -> None:
    assert corrected([]) == decisions([]) == corrections([]) == []
    assert power_charts([]) == {}
