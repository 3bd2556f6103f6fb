"""Charts of several stages in one: the first curve of each, or its mean over the seeds of a recipe."""

# S seeds

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from vfm.panels import LinesPanel, Series

Key = tuple[str, str, str]
"""Title and axes of a chart."""


def joint_panels(panels: Iterable[LinesPanel]) -> list[LinesPanel]:
    """Return a chart for each title of panels that name their `curve`, if there are two or more of them.

    Panels whose curves differ in the seed only (`cosine@0`, `cosine@1`) become one curve: the mean of each point, with
    the t-interval of y.
    """
    found: defaultdict[Key, defaultdict[str, list[LinesPanel]]] = defaultdict(lambda: defaultdict(list))
    for panel in panels:
        if panel.curve and panel.series:
            found[panel.title, panel.x_label, panel.y_label][panel.curve.partition("@")[0]].append(panel)
    return [_joint(key, curves) for key, curves in found.items() if sum(map(len, curves.values())) > 1]


def _joint(key: Key, curves: dict[str, list[LinesPanel]]) -> LinesPanel:
    title, x_label, y_label = key
    series = [one for name, parts in curves.items() for one in _over_seeds(name, parts)]
    num_seeds = max(map(len, curves.values()))
    first = next(iter(curves.values()))[0]
    note = f"Each point is a mean over {num_seeds} seeds; bands are 95 % t-intervals." if num_seeds > 1 else first.note
    return LinesPanel(
        title=f"{title}, all curves", note=note, front=True, order=first.order, series=series,
        x_label=x_label, y_label=y_label, x_log=first.x_log, y_log=first.y_log,
    )  # fmt: skip


def _over_seeds(name: str, parts: Sequence[LinesPanel]) -> list[Series]:
    """Return the mean curve of the seeds; their own curves if these have not the same points."""
    curves = [panel.series[0] for panel in parts]
    y = [[value for value in curve.y if value is not None] for curve in curves]
    if len(curves) == 1 or len({len(curve.x) for curve in curves} | {len(values) for values in y}) > 1:
        return [curve.model_copy(update={"name": panel.curve}) for panel, curve in zip(parts, curves, strict=True)]
    from vfm.statistics import t_interval  # needs scipy, an optional extra

    points = list(zip(*y, strict=True))  # of S values
    intervals = [t_interval(values) for values in points]
    mean_x = [statistics.fmean(values) for values in zip(*(curve.x for curve in curves), strict=True)]
    low, high = ([interval[end] for interval in intervals] for end in (0, 1))
    return [Series(name=name, x=mean_x, y=[statistics.fmean(values) for values in points], low=low, high=high)]
