"""Draw charts of several stages, with the first curve of each, or its mean over the seeds of a recipe."""

# S seeds

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable

from vfm.interfaces import LinesPanel, Series

Parts = list[tuple[str, LinesPanel]]
"""Panels, each with its stage."""


def joint_panels(panels: Iterable[tuple[str, LinesPanel]]) -> list[LinesPanel]:
    """Build a chart for each title of panels that name their `curve`, if there are two or more of them.

    Another curve that is the same in all of them, such as a diagonal, is drawn once.

    Panels whose curves only differ in the seed (`cosine@0`, `cosine@1`) become one curve: the mean of each point, with
    the t-interval of y. If curves share a name, the name of their stage is added.

    Args:
        panels: (stage, panel).
    """
    groups: defaultdict[tuple[str, str, str], Parts] = defaultdict(list)  # by the title and axes of the chart
    for stage, panel in panels:
        if panel.curve and panel.series:
            groups[panel.title, panel.x_label, panel.y_label].append((stage, panel))
    return [_joint(parts) for parts in groups.values() if len(parts) > 1]


def _joint(parts: Parts) -> LinesPanel:
    _, first = parts[0]
    curves: defaultdict[str, Parts] = defaultdict(list)  # by the name without the seed
    for stage, panel in parts:
        curves[panel.curve.split("@", 1)[0]].append((stage, panel))
    series: list[Series] = []
    num_seeds: dict[str, int] = {}  # number of seeds by name of the mean curve
    for name, of_seeds in curves.items():
        mean = _mean(name, of_seeds)
        if mean:
            num_seeds[name] = len(of_seeds)
            series.append(mean)
        else:
            series += _each(of_seeds)
    for common in first.series[1:]:
        if all(common in panel.series for _, panel in parts):
            series.append(common)
    if len(num_seeds) == len(curves):
        points = "Each point"
    else:
        points = f"Each point of {', '.join(num_seeds)}"
    numbers = sorted(set(num_seeds.values()))
    seeds = " or ".join(map(str, numbers))
    if num_seeds:
        note = f"{points} is a mean over {seeds} seeds; bands are 95 % t-intervals."
    else:
        note = first.note
    return LinesPanel(
        title=f"{first.title}, all curves", note=note, front=True, order=first.order, series=series,
        x_label=first.x_label, y_label=first.y_label, x_log=first.x_log, y_log=first.y_log,
    )  # fmt: skip


def _each(parts: Parts) -> list[Series]:
    counts = Counter(panel.curve for _, panel in parts)
    series = []
    for stage, panel in parts:
        name = panel.curve
        if counts[name] > 1:
            name = f"{name} ({stage})"
        series.append(panel.series[0].model_copy(update={"name": name}))
    return series


def _mean(name: str, parts: Parts) -> Series | None:
    """Compute the mean curve of several seeds.

    There is none if their points differ, or stages share a name.
    """
    names = set()
    lengths = set()
    xs = []
    ys = []
    for _, panel in parts:
        curve = panel.series[0]
        y = [value for value in curve.y if value is not None]
        names.add(panel.curve)
        lengths |= {len(curve.x), len(y)}
        xs.append(curve.x)
        ys.append(y)
    if len(parts) == 1 or len(names) < len(parts) or len(lengths) > 1:
        return None
    from vfm.statistics import t_interval  # needs scipy, an optional extra

    x = list(map(statistics.fmean, zip(*xs, strict=True)))
    points = list(zip(*ys, strict=True))  # S values each
    y = list(map(statistics.fmean, points))
    low = []
    high = []
    for values in points:
        ends = t_interval(values)
        low.append(ends[0])
        high.append(ends[1])
    return Series(name=name, x=x, y=y, low=low, high=high, marks=parts[0][1].series[0].marks)
