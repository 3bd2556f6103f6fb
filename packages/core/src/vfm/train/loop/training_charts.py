"""Draw losses, gradient norm, learning rate and scores from the lines of `metrics.jsonl`.

This module does not import torch, so that a page can be drawn quickly during training.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from vfm.interfaces import LinesPanel, Series
from vfm.storage.store_files import read_json_lines, reading

METRICS_FILE = "metrics.jsonl"  # in the folder of a running or finished training run
MAX_POINTS = 2000  # points of a drawn curve
LOSS = "train/loss"
GRADIENT_NORM = "train/grad_norm"
LEARNING_RATE = "train/lr"
WORDS = {"lr": "learning rate", "grad_norm": "gradient norm"}


def training_charts(file: Path) -> list[LinesPanel]:
    """Draw charts of loss, gradient norm, learning rate, other metrics and evaluations from a `metrics.jsonl`.

    Raises:
        UserError: If the file is damaged.
    """
    lines = read_json_lines(file)
    with reading(file, "metrics"):
        return charts_of(lines)


def charts_of(lines: list[dict[str, Any]]) -> list[LinesPanel]:
    """Draw charts from lines of metrics, each with its `step`, its `split` and values by name."""
    rows = [line for line in lines if line["split"] == "train"]
    rows = rows[:: -(-len(rows) // MAX_POINTS) or 1]  # rounded up, so that at most MAX_POINTS remain
    losses = []
    others = []
    for name in _values(rows):
        if name.endswith("loss"):
            losses.append(name)
        elif name not in (GRADIENT_NORM, LEARNING_RATE):
            others.append(name)
    losses.sort(key=lambda name: name != LOSS)  # the total loss first, so that it gets the main colour
    # A loss with one part is logged twice, as total and as part. Draw one curve, with the name of the part.
    distinct = {tuple(row.get(name) for row in rows): name for name in losses}
    note = "Mean over the steps between two points, or the value at a point, of what is computed for the log only."
    spikes = "Before clipping. A steady climb or spikes precede divergence."
    charts = [
        _chart(rows, "Training loss", 10, list(distinct.values()), note),
        _chart(rows, "Gradient norm", 11, [GRADIENT_NORM], spikes),
        _chart(rows, "Learning rate", 12, [LEARNING_RATE], ""),
    ]
    for family, parts in _families(others).items():
        charts.append(_chart(rows, in_words(family).capitalize(), 13, parts, note))
    return [*charts, *_score_charts(lines)]


def in_words(name: str) -> str:
    """Format the name of a metric in words: `train/contrastive_loss` becomes "contrastive loss"."""
    *groups, last = name.removeprefix("train/").removeprefix("val/").split("/")
    return ": ".join(WORDS.get(part, part.replace("_", " ")) for part in (*groups, last))


def _score_charts(lines: list[dict[str, Any]]) -> list[LinesPanel]:
    """Draw one chart per evaluation.

    Scores of parts (a pattern, a class) are only in the file.
    """
    by_eval: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["split"] == "val":
            by_eval.setdefault(line["eval"], []).append(line)
    charts = []
    for name, rows in by_eval.items():
        scores = [score for score in _values(rows) if score.rpartition("/")[0] not in rows[0]]
        charts.append(_chart(rows, f"During training: {name.replace('_', ' ')}", 14, scores, ""))
    return charts


def _values(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in dict.fromkeys(chain.from_iterable(rows)) if "/" in name]


def _families(names: list[str]) -> dict[str, list[str]]:
    """Group metrics to draw together. They have the same name between `train/` and the last `/`."""
    families: dict[str, list[str]] = {}
    for name in names:
        above, _, last = name.removeprefix("train/").rpartition("/")
        families.setdefault(above or last, []).append(name)
    return families


def _chart(rows: list[dict[str, Any]], title: str, order: int, names: list[str], note: str) -> LinesPanel:
    steps = [row["step"] for row in rows]
    family = f"{title.lower().removeprefix('during training: ')}: "  # already in the title
    series = []
    for name in names:
        values = [row.get(name) for row in rows]
        series.append(Series(name=in_words(name).removeprefix(family), x=steps, y=values))
    return LinesPanel(title=title, order=order, note=note, x_label="step", y_label=title.lower(), series=series)
