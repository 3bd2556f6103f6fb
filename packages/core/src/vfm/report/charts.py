"""Line charts as inline SVG for the report. Text is not converted to paths."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vfm.interfaces import LinesPanel, Series
from vfm.report.scale import calm_limits
from vfm.report.text import shown
from vfm.report.theme import SERIES, dash, light, themed

SIZE = (4.6, 2.9)  # inches, 100 SVG units each: two charts fit side by side, and one stays readable on a phone
MARGIN = 0.06  # above and below the curves, relative to their range
INK = light("ink")
MUTED = light("muted")
RULE = light("rule")
AXIS = light("axis")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "path.simplify_threshold": 0.5,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.4,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": AXIS, "axes.linewidth": 0.8,
    "xtick.color": AXIS, "ytick.color": AXIS, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.major.size": 0,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "lines.linewidth": 1.6, "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip


def compact(value: float, position: int | None = None) -> str:
    """Format a number for an axis, such as `1,000`, `20k`, `1.5M`, `0.01` or `1e-05`."""
    # Up to 9,999 numbers are short enough without a letter.
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:g}{letter}".replace("-", "\N{MINUS SIGN}")
    if not value:
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
    return text.replace("-", "\N{MINUS SIGN}")


def lines_svg(panel: LinesPanel, salt: str) -> str:
    """Draw the curves of a panel as an `<svg>` element.

    Args:
        panel: The curves. None in a series is a gap.
        salt: Makes the ids of elements unique on the page.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a file `matplotlibrc` in the working folder may have text set by LaTeX, a program
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": salt})
        # Matplotlib measures text with its font, which lacks many scripts. The reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for index, series in enumerate(panel.series):
            _draw(axes, series, index)
        _axes(axes, panel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(buffer.getvalue(), _described(axes))


def _draw(axes: Axes, series: Series, index: int) -> None:
    style = (0, list(map(float, dash(index).split()))) if dash(index) else "-"
    marker = "o" if len(series.x) <= 12 or series.marks else ""
    hue = light(f"series-{index % len(SERIES)}")
    y = _with_gaps(series.y)
    style = "" if series.marks else style
    axes.plot(
        series.x, y, color=hue, linestyle=style, marker=marker, markersize=4, markeredgewidth=0, gid=f"curve{index}"
    )
    if series.low and series.high:
        low, high = _with_gaps(series.low), _with_gaps(series.high)
        if series.marks:
            axes.vlines(series.x, low, high, color=hue, alpha=0.4, linewidth=1, gid=f"curve{index}")
        else:
            axes.fill_between(series.x, low, high, color=hue, alpha=0.15, linewidth=0, gid=f"curve{index}")


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _axes(axes: Axes, panel: LinesPanel) -> None:
    xs: list[float] = []
    ys: list[float] = []
    for series in panel.series:
        xs += series.x
        for part in (series.y, series.low, series.high):
            ys += [y for y in part or () if y is not None]
    axes.margins(x=0.02, y=MARGIN)
    for axis, scale, log, values in (
        (axes.xaxis, axes.set_xscale, panel.x_log, xs),
        (axes.yaxis, axes.set_yscale, panel.y_log, ys),
    ):
        positive = [value for value in values if 0 < value < math.inf]
        if log and positive:  # a logarithmic scale needs a positive value
            scale("log")
            narrow = max(positive) < 100 * min(positive)
            steps = (1, 2, 5) if narrow else (1,)
            axis.set_major_locator(LogLocator(subs=steps, numticks=7))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(compact))
    axes.set_xlabel(str(shown(panel.x_label)), loc="right")
    if axes.get_yscale() == "linear":
        finite = list(filter(math.isfinite, ys))
        low, high = calm_limits(min(finite, default=0.0), max(finite, default=0.0))
        axes.set_ylim(low - MARGIN * (high - low), high + MARGIN * (high - low))


def _described(axes: Axes) -> str:
    """Describe scale and limits of both axes (logarithms on a logarithmic axis), for a script that overlays curves."""
    ends = zip(axes.get_xlim(), axes.get_ylim(), strict=True)
    (left, bottom), (right, top) = axes.transScale.transform([*ends])
    return f"{axes.get_xscale()} {left:.9g} {right:.9g} {axes.get_yscale()} {bottom:.9g} {top:.9g}"


def _inline(document: str, axes: str) -> str:
    """Convert matplotlib's SVG file to an element, without prologue, page-wide styles and unused ids."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z0-9_.]+_\d+"', "", svg)
    svg = re.sub(r' id="curve(\d+)"', r' data-curve="\1"', svg)  # a script hides curves by this attribute
    opening = re.sub(r' (width|height|xmlns\S*|version)="[^"]*"', "", svg[: svg.index(">")])
    svg = f'{opening} data-axes="{axes}"' + svg[svg.index(">") :]
    return themed(re.sub(r"\s*\n\s*", "\n", svg).strip())
