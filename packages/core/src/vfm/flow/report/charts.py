"""Line charts as inline SVG for the report; text stays text."""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vfm.flow.report.text import shown
from vfm.panels import LinesPanel, Series

# Okabe and Ito's hues, darkened until text in them has a contrast of 4.5:1 on white. The dashes distinguish the curves
# without colour.
PALETTE = ("#0072b2", "#c24a00", "#007a5a", "#a3488a", "#7a6400", "#444b54")
DASHES = ("", "6 2", "2 2", "8 2 2 2", "4 4", "1 2")
INK, MUTED, RULE = "#1c2024", "#5b6570", "#e3e7eb"

SIZE = (4.6, 2.9)  # inches, 100 SVG units each: two charts fit side by side, and one stays readable on a phone
MAX_DIRECT_LABELS = 4
MAX_LABEL_LENGTH = 18
LABEL_GAP = 0.085  # of the axes' height

STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "path.simplify_threshold": 0.5,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8.6,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": "#b8c0c8", "axes.linewidth": 0.8,
    "xtick.color": "#b8c0c8", "ytick.color": "#b8c0c8", "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.major.size": 0,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "lines.linewidth": 1.6, "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip


def color(index: int) -> str:
    """Return the colour of the series at `index`."""
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> str:
    """Return the `stroke-dasharray` of the series at `index`; empty for a solid line.

    Where the colours begin anew, the dashes are shifted by one, so that no two of 36 series look alike.
    """
    return DASHES[(index + index // len(PALETTE)) % len(DASHES)]


def labels_fit(panel: LinesPanel) -> bool:
    """Return whether the names fit at the ends of the curves; otherwise the page shows a legend above the chart."""
    names = [series.name for series in panel.series]
    return len(names) <= MAX_DIRECT_LABELS and all(len(name) <= MAX_LABEL_LENGTH for name in names)


def compact(value: float, position: int | None = None) -> str:
    """Format a number for an axis: `1,000`, `20k`, `1.5M`, `0.01`, `1e-05`."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:g}{letter}".replace("-", "\N{MINUS SIGN}")
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}").replace("-", "\N{MINUS SIGN}") if value else "0"


def lines_svg(panel: LinesPanel, salt: str) -> str:
    """Return the curves of a panel as an `<svg>` element.

    Args:
        panel: the curves; None in a series is a gap.
        salt: makes the ids inside unique on the page.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # Matplotlib measures text with its own font, which lacks many scripts; the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for index, series in enumerate(panel.series):
            _draw(axes, series, index)
        _axes(axes, panel)
        if len(panel.series) > 1 and labels_fit(panel):
            _direct_labels(axes, panel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(buffer.getvalue())


def _draw(axes: Axes, series: Series, index: int) -> None:
    y = [math.nan if value is None else value for value in series.y]
    style = (0, [float(part) for part in dash(index).split()]) if dash(index) else "-"
    marker = "o" if len(series.x) <= 12 else ""
    axes.plot(series.x, y, color=color(index), linestyle=style, marker=marker, markersize=3.2)
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=color(index), alpha=0.15, linewidth=0)


def _axes(axes: Axes, panel: LinesPanel) -> None:
    xs = [x for series in panel.series for x in series.x]
    ys = [y for series in panel.series for y in series.y if y is not None]
    axes.margins(x=0.02, y=0.06)
    for axis, scale, log, values in (
        (axes.xaxis, axes.set_xscale, panel.x_log, xs),
        (axes.yaxis, axes.set_yscale, panel.y_log, ys),
    ):
        positive = [value for value in values if 0 < value < math.inf]
        if log and positive:  # a logarithmic scale needs a positive value
            scale("log")
            narrow = max(positive) < 100 * min(positive)
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=7))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(compact))
    axes.set_xlabel(str(shown(panel.x_label)), loc="right")
    axes.autoscale_view()  # the direct labels are placed by the final limits


def _direct_labels(axes: Axes, panel: LinesPanel) -> None:
    """Write the names at the right ends of the curves, moved apart if they would overlap."""
    ends = []
    for index, series in enumerate(panel.series):
        known = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None and math.isfinite(y)]
        if known:
            place = axes.transAxes.inverted().transform(axes.transData.transform(known[-1]))[1]
            ends.append((float(place) if math.isfinite(place) else 0.0, index, series.name))
    heights = spread_labels([place for place, _, _ in sorted(ends)])
    for height, (_, index, name) in zip(heights, sorted(ends), strict=True):
        axes.text(
            1.015,
            height,
            str(shown(name)),
            transform=axes.transAxes,
            color=color(index),
            va="center",
            fontweight="bold",
        )


def spread_labels(places: list[float]) -> list[float]:
    """Move ascending places up until they are `LABEL_GAP` apart, then all down if the last one is above the top."""
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + LABEL_GAP)
    excess = max(0.0, places[-1] - 1.0) if places else 0.0
    return [place - excess for place in places]


def _inline(document: str) -> str:
    """Return matplotlib's SVG file as an element, without prologue, page-wide styles and unused ids."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z0-9_.]+_\d+"', "", svg)
    opening = re.sub(r' (width|height|xmlns\S*|version)="[^"]*"', "", svg[: svg.index(">")])
    svg = opening + svg[svg.index(">") :]
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
