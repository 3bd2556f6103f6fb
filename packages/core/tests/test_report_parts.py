"""The elements of the report: colours, curves, scales and number formats."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from vfm.base import error_lines, number_format
from vfm.interfaces import BarsPanel, Comparison, LinesPanel, Series, TablePanel, load_panels
from vfm.report import theme
from vfm.report.result_table import Result, ResultRow, ResultTable
from vfm.report.scale import Scale, calm_limits

charts = pytest.importorskip("vfm.report.charts", exc_type=ImportError)

finite = st.floats(-1e9, 1e9)

# What a reader sees of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB under D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(matrix @ rgb / matrix.sum(1), 1e-6, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("screen", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "right", *(f"series-{index}" for index in range(len(theme.SERIES)))])
def test_text_in_every_colour_reads_on_its_ground(name: str, screen: int) -> None:
    lights = [linear(theme.THEME[part][screen]) @ [0.2126, 0.7152, 0.0722] + 0.05 for part in (name, "paper")]
    assert max(lights) / min(lights) >= 4.5  # WCAG 2.2, level AA


@pytest.mark.parametrize("screen", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISIONS)
def test_colour_blind_readers_distinguish_the_first_curves(vision: str, screen: int) -> None:
    seen = [lab(np.clip(VISIONS[vision] @ linear(pair[screen]), 0, 1)) for pair in theme.SERIES[:4]]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 10
    assert len(set(theme.DASHES)) == len(theme.SERIES)  # the dashes carry the rest


def test_no_two_of_many_curves_look_alike() -> None:
    count = len(theme.SERIES) * len(theme.DASHES)
    assert len({(theme.color(index), theme.dash(index)) for index in range(count)}) == count


def chart(*series: Series, **more: bool) -> str:
    return str(
        charts.lines_svg(LinesPanel(title="t", series=[*series], x_label="step", y_label="loss", **more), "salt")
    )


def curve(svg: str, color: str) -> str:
    """The path data of the curve in a colour."""
    (data,) = re.findall(rf'<path d="([^"]*)" clip-path="[^"]*" style="fill: none; stroke: {re.escape(color)}', svg)
    return str(data)


def test_a_gap_in_the_values_breaks_the_curve() -> None:
    whole, gap = [1.0, 2.0, 3.0, 2.0, 1.0] * 4, [1.0, None, 3.0, 2.0, 1.0] * 4
    x = [float(i) for i in range(20)]
    assert curve(chart(Series(name="a", x=x, y=whole)), theme.color(0)).count("M") == 1
    assert curve(chart(Series(name="a", x=x, y=gap)), theme.color(0)).count("M") > 1


def test_a_long_training_stays_a_small_drawing() -> None:
    steps = 200_000
    noise = np.random.default_rng(0).standard_normal(steps)
    assert len(chart(Series(name="a", x=range(steps), y=noise.tolist()))) < 100_000


@pytest.mark.parametrize(("word", "text"), [("$x_1$", "$x_1$"), ("_a", "_a"), ("<b>&", "&lt;b&gt;&amp;")])
def test_words_in_a_chart_stay_words(word: str, text: str) -> None:
    curves = [Series(name="a", x=[1, 2], y=[1, 2])]
    svg = charts.lines_svg(LinesPanel(title="t", series=curves, x_label=word, y_label="loss"), "salt")
    assert f">{text}</text>" in svg
    assert "http" not in svg


def test_a_log_axis_counts_in_decades_and_needs_a_positive_value() -> None:
    decades = chart(Series(name="a", x=[1, 10, 1e5], y=[1, 10, 1e5]), x_log=True, y_log=True)
    assert {"1", "100", "10k"} <= set(re.findall(r">([\d.k]+)</text>", decades))
    assert "</svg>" in chart(Series(name="a", x=[0, 1], y=[-1.0, 0.0]), y_log=True)


def test_a_script_finds_each_curve_and_the_theme_its_colours() -> None:
    band = Series(name="a", x=[1, 2], y=[1, 2], low=[0, 1], high=[2, 3])
    svg = chart(band, Series(name="#0072b2", x=[1, 2], y=[2, 1]))
    assert re.findall(r'data-curve="(\d)"', svg) == ["0", "0", "1"]  # a band, and two curves
    assert not re.search(r"(stroke|fill): #", svg), "a colour that does not follow the theme"


def test_a_script_finds_the_limits_of_both_axes() -> None:
    svg = chart(Series(name="a", x=[1, 100], y=[0, 10]), x_log=True)
    (axes,) = re.findall(r'<svg [^>]*data-axes="([^"]*)"', svg)
    x_scale, left, right, y_scale, bottom, top = axes.split()
    assert (x_scale, y_scale) == ("log", "linear")
    assert [float(left), float(right)] == pytest.approx([-0.04, 2.04])  # 2 % of two decades
    assert [float(bottom), float(top)] == pytest.approx([-0.6, 10.6])


def test_a_small_change_makes_no_drama() -> None:
    low, high = calm_limits(0.4374, 0.4375)
    assert high - low == pytest.approx(0.05 * 0.4375)
    assert (low + high) / 2 == pytest.approx((0.4374 + 0.4375) / 2)
    assert calm_limits(0.4, 2.3) == (0.4, 2.3)
    assert calm_limits(0.0, 0.0) == (0.0, 1.0)
    ticks = re.findall(r">(0\.4\d*)</text>", chart(Series(name="a", x=[1, 2], y=[0.4374, 0.4375])))
    assert float(ticks[-1]) - float(ticks[0]) >= 0.01


@given(finite, finite)
def test_calm_limits_hold_the_values_in_their_middle(a: float, b: float) -> None:
    low, high = calm_limits(min(a, b), max(a, b))
    assert low <= min(a, b)
    assert high >= max(a, b)
    assert high - low >= 0.05 * max(abs(a), abs(b)) * (1 - 1e-9)
    assert calm_limits(low, high)[1] - calm_limits(low, high)[0] <= 1.06 * (high - low)


@given(st.lists(finite, min_size=1), finite, finite)
def test_a_strip_keeps_order_and_stays_on_the_page(values: list[float], a: float, b: float) -> None:
    scale = Scale.of(values)
    assert 0 <= scale(min(a, b)) <= scale(max(a, b)) <= 100
    assert scale(min(values)) <= scale(0.0) or min(values) > 0


@pytest.mark.parametrize(
    ("values", "p_value", "difference", "sign"),
    [
        ((), 0.01, 0.1, "≠"),
        ((), 0.06, 0.1, ""),
        ((), math.nan, 0.1, ""),
        ((1, 2), 0.01, 0.1, "▲"),
        ((1, 2), 0.05, -0.1, "▼"),
        ((1, 2), 1, 0, ""),
    ],
)
def test_only_several_seeds_have_a_direction(values, p_value, difference, sign) -> None:
    test = Comparison(
        metric="m", model="b", baseline="a", difference=difference, low=0, high=0, p_value=p_value, test="t"
    )
    assert ResultRow("b", 0.5, 0.4, 0.6, values, test).sign == sign


def test_a_value_whose_interval_is_unknown_has_its_place() -> None:
    rows = [ResultRow("a", 0.5, math.nan, math.nan), ResultRow("b", 0.25, math.nan, math.nan)]
    scale = ResultTable("t", "", "t", [Result("m", "share", 3, 0.1, rows)]).scale("share")
    assert scale(0.5) > scale(0.25) > scale(0.1) > scale(0.0)


def test_a_strip_survives_what_is_not_finite() -> None:
    scale = Scale.of([math.nan, math.inf, None, 2.0])
    assert (scale.low, scale.high) == (0.0, 2.0)
    assert 0 <= scale(math.nan) <= 100
    assert 0 <= scale(math.inf) <= 100


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), ("word", "word"), (True, "True"), (1234567, "1,234,567"), (6033.0, "6,033"), (-3, "−3"), (0.0, "0"),
     (0.12345, "0.1235"), (12345.6, "12,346"), (1.5e-7, "1.50e−07"), (2.5e20, "2.500e+20"), (math.nan, "nan")],
)  # fmt: skip
def test_cells_are_written_as_people_read_them(value: object, text: str) -> None:
    assert number_format.number(value) == text


def test_a_p_value_that_is_unknown_is_not_small() -> None:
    texts = [number_format.p_value(value).replace(number_format.NO_BREAK, " ") for value in (0.0004, 0.032, math.nan)]
    assert texts == ["< 0.001", "= 0.032", "= nan"]


def test_shares_and_percentages_say_the_same() -> None:
    assert number_format.quantity(0.613, "share") == number_format.quantity(61.3, "%") == "61.3\N{NO-BREAK SPACE}%"
    assert (
        number_format.interval(0.58, 0.643, "share")
        == number_format.interval(58.0, 64.3, "%")
        == "58.0 – 64.3\N{NO-BREAK SPACE}%"
    )
    assert number_format.change(-0.012, "share") == number_format.change(-1.2, "%") == "−1.2"
    assert number_format.quantity(-3.0, "nats") == "−3\N{NO-BREAK SPACE}nats"
    assert number_format.change(2.5, "nats") == "+2.5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "< 0.1 s"), (0.4, "0.4 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (245, "4 min 05 s"),
     (3599.6, "1 h 00 min"), (7530, "2 h 05 min")],
)  # fmt: skip
def test_durations_carry_into_the_next_unit(seconds: float, text: str) -> None:
    assert number_format.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("panel", "fields", "said"),
    [
        (Series, {"x": [1, 2], "y": [1]}, "series 'a': expected equal lengths, got 2 x, 1 y"),
        (
            Series,
            {"x": [1], "y": [1], "low": [0], "high": []},
            "series 'a': expected equal lengths, got 1 x, 1 y, 1 low, 0 high",
        ),
        (BarsPanel, {"labels": ["b"], "values": []}, "panel 'a': expected equal lengths, got 1 labels, 0 values"),
        (
            BarsPanel,
            {"labels": ["b"], "values": [1], "low": [0, 0]},
            "panel 'a': expected equal lengths, got 1 labels, 1 values, 2 low",
        ),
        (TablePanel, {"columns": ["b"], "rows": [[1], [1, 2]]}, "table 'a': expected at most 1 cells in a row, got 2"),
    ],
)
def test_panel_whose_parts_do_not_match_is_refused_in_one_line(panel, fields, said) -> None:
    titled = {"name" if panel is Series else "title": "a"}
    with pytest.raises(ValidationError) as caught:
        panel(**titled, **fields)
    ((_, line),) = error_lines(caught.value, panel)
    assert line.startswith(said)
    assert "\n" not in line


def test_titles_that_differ_in_signs_are_two_panels_and_one_title_is_one(tmp_path: Path) -> None:
    for title in ("From a_b to c", "From a-b to c", "表", "图", "From a-b to c"):
        TablePanel(title=title, columns=["x"], rows=[]).save(tmp_path)
    assert sorted(panel.title for panel in load_panels(tmp_path)) == ["From a-b to c", "From a_b to c", "图", "表"]
