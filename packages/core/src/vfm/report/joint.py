"""Draw charts of several stages, with the first curve of each, or its mean over the seeds of a recipe."""

# S seeds

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from vfm.interfaces import LinesPanel, Series

Key = tuple[str, str, str]
"""Title and axes of a chart."""
Parts = list[tuple[str, LinesPanel]]
"""Panels whose curves have the same name except for the seed, each with its stage."""


def joint_panels(panels: Iterable[tuple[str, LinesPanel]]) -> list[LinesPanel]:
    """Build a chart for each title of panels that name their `curve`, if there are two or more of them.

    Another curve that is the same in all of them, such as a diagonal, is drawn once.

    Panels whose curves only differ in the seed (`cosine@0`, `cosine@1`) become one curve: the mean of each point, with
    the t-interval of y. If curves share a name, the name of their stage is added.

    Args:
        panels: (stage, panel).
    """
    groups: defaultdict[Key, defaultdict[str, Parts]] = defaultdict(lambda: defaultdict(list))
    for stage, panel in panels:
        if panel.curve and panel.series:
            parts = groups[panel.title, panel.x_label, panel.y_label][panel.curve.split("@", 1)[0]]
            parts.append((stage, panel))
    return [_joint(key, curves) for key, curves in groups.items() if sum(map(len, curves.values())) > 1]


def _joint(key: Key, curves: dict[str, Parts]) -> LinesPanel:
    title, x_label, y_label = key
    _, first = next(iter(curves.values()))[0]
    series: list[Series] = []
    num_seeds: dict[str, int] = {}  # number of seeds by name of the mean curve
    for name, parts in curves.items():
        mean = _mean(name, [panel for _, panel in parts])
        if mean:
            num_seeds[name] = len(parts)
        series += [mean] if mean else _each(parts)
    panels: list[LinesPanel] = []
    for parts in curves.values():
        panels += [panel for _, panel in parts]
    for common in first.series[1:]:
        if all(common in panel.series for panel in panels):
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
        title=f"{title}, all curves", note=note, front=True, order=first.order, series=series,
        x_label=x_label, y_label=y_label, x_log=first.x_log, y_log=first.y_log,
    )  # fmt: skip


def _each(parts: Parts) -> list[Series]:
    count = Counter(panel.curve for _, panel in parts)
    names = [panel.curve if count[panel.curve] == 1 else f"{panel.curve} ({stage})" for stage, panel in parts]
    return [panel.series[0].model_copy(update={"name": name}) for name, (_, panel) in zip(names, parts, strict=True)]


def _mean(name: str, parts: Sequence[LinesPanel]) -> Series | None:
    """Compute the mean curve of several seeds.

    There is none if their points differ, or stages share a name.
    """
    curves = [panel.series[0] for panel in parts]
    y = [[value for value in curve.y if value is not None] for curve in curves]
    same_points = len({len(curve.x) for curve in curves} | {len(values) for values in y}) == 1
    if len(parts) == 1 or len({panel.curve for panel in parts}) < len(parts) or not same_points:
        return None
    from vfm.statistics import t_interval  # needs scipy, an optional extra

    points = list(zip(*y, strict=True))  # S values each
    intervals = [t_interval(values) for values in points]
    xs = [curve.x for curve in curves]
    mean_x = [statistics.fmean(values) for values in zip(*xs, strict=True)]
    low = [interval[0] for interval in intervals]
    high = [interval[1] for interval in intervals]
    y_mean = [statistics.fmean(values) for values in points]
    return Series(name=name, x=mean_x, y=y_mean, low=low, high=high, marks=curves[0].marks)
