"""Charts of a training run's speed, its waits for data and its memory, from the events of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vfm.interfaces import LinesPanel, Series

MAX_POINTS = 300  # of a curve
CHARTS = [  # metric of an event, title, note
    ("train/samples_per_second", "Samples per second", "Over all processes."),
    ("train/data_wait_pct", "Waiting for data, %", "Share of the time in which the training step had no batch."),
    ("sys/mem_gib", "Memory, GiB", "Of the GPU if there is one, else of the process."),
]


def speed_charts(steps: Sequence[Mapping[str, Any]]) -> list[LinesPanel]:
    """Build the charts of the metrics that occur.

    Args:
        steps: Data of the `metrics` events of a stage, each with `step` and `values`.
    """
    shown = steps[:: -(-len(steps) // MAX_POINTS) or 1]
    charts = []
    for order, (metric, title, note) in enumerate(CHARTS):
        points = [(step["step"], step["values"][metric]) for step in shown if metric in step["values"]]
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            series = [Series(name=title, x=list(x), y=list(y))]
            charts.append(
                LinesPanel(title=title, note=note, order=90 + order, series=series, x_label="step", y_label="")
            )
    return charts
