"""Charts of several stages in one: a curve for each model, its mean and t-interval over the seeds."""

from __future__ import annotations

import pytest

from vfm.interfaces import LinesPanel, Series
from vfm.report.joint import joint_panels
from vfm.statistics import t_interval


def panel(
    curve: str, x: list[float], y: list[float | None], title: str = "Trade-off", stage: str = "line"
) -> tuple[str, LinesPanel]:
    low, high = ([0.0] * len(x), [1.0] * len(x))
    further = Series(name="further", x=x, y=y)
    series = [Series(name="score", x=x, y=y, low=low, high=high), further]
    return stage, LinesPanel(title=title, series=series, x_label="pairs", y_label="acc1", note="As is.", curve=curve)


def test_curves_of_seeds_become_their_mean_with_its_interval() -> None:
    found = joint_panels(
        [
            panel("cosine@0", [0.1, 0.3], [0.9, 0.6]),
            panel("none@0", [0.1, 0.4], [0.9, 0.2]),
            panel("cosine@1", [0.3, 0.5], [0.7, 0.2]),
            panel("none@1", [0.2, 0.4], [0.8, 0.3]),
            panel("", [0.0], [0.0]),
        ]
    )
    (chart,) = found
    assert chart.front
    assert "mean over 2 seeds" in chart.note
    cosine, none = chart.series
    assert (cosine.name, none.name) == ("cosine", "none")
    assert cosine.x == pytest.approx([0.2, 0.4])
    assert cosine.y == pytest.approx([0.8, 0.4])
    assert cosine.low
    assert cosine.high
    assert (cosine.low[1], cosine.high[1]) == t_interval([0.6, 0.2])


def test_one_seed_keeps_its_points_and_bands() -> None:
    parts = [panel("cosine", [0.1, 0.3], [0.9, 0.6]), panel("none", [0.1], [0.9])]
    (chart,) = joint_panels(parts)
    assert [one.name for one in chart.series] == ["cosine", "none"]
    assert [one.model_copy(update={"name": "score"}) for one in chart.series] == [part.series[0] for _, part in parts]
    assert chart.note == "As is."


def test_charts_of_their_own_stay_alone_and_unequal_seeds_apart() -> None:
    assert joint_panels([panel("cosine", [0.1], [0.9]), panel("none", [0.1], [0.9], "Another")]) == []
    (chart,) = joint_panels([panel("cosine@0", [0.1], [0.9]), panel("cosine@1", [0.1, 0.2], [0.9, None])])
    assert [one.name for one in chart.series] == ["cosine@0", "cosine@1"]
    assert chart.note == "As is."


def test_two_stages_with_one_name_are_no_seeds() -> None:
    parts = [panel("tuned", [0.1 * i], [0.9], stage=f"from_{i}") for i in (1, 2)]  # from two starts to one end
    (chart,) = joint_panels([*parts, panel("none", [0.3], [0.5])])
    names = [("tuned (from_1)", [0.1]), ("tuned (from_2)", [0.2]), ("none", [0.3])]
    assert [(one.name, one.x) for one in chart.series] == names, "the legend distinguishes them"
    seeds = [panel("other@0", [0.1], [0.9]), panel("other@1", [0.1], [0.7])]
    (chart,) = joint_panels([panel("cosine@0", [0.1], [0.9]), panel("cosine@1", [0.1, 0.2], [0.9, None]), *seeds])
    assert [one.name for one in chart.series] == ["cosine@0", "cosine@1", "other"]
    assert chart.note == "Each point of other is a mean over 2 seeds; bands are 95 % t-intervals."


def test_marks_stay_marks_and_a_curve_that_all_share_is_drawn_once() -> None:
    diagonal = Series(name="equal", x=[0, 1], y=[0, 1])

    def chart(seed: int, y: list[float | None]) -> tuple[str, LinesPanel]:
        own = Series(name="further", x=[0.2], y=[seed])
        series = [Series(name="cells", x=[0.5, 0.1], y=y, marks=True), diagonal, own]
        return "law", LinesPanel(title="Law", series=series, x_label="x", y_label="y", curve=f"law@{seed}")

    (found,) = joint_panels([chart(0, [0.1, 0.2]), chart(1, [0.3, 0.4])])
    assert [series.name for series in found.series] == ["law", "equal"]
    assert found.series[0].marks
    assert found.series[1] == diagonal
