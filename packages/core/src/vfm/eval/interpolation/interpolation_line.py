"""Scores of interpolated models, with intervals, and their charts."""

# A models along the line

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfm.eval.base import ModelEvaluation
from vfm.eval.interpolation.stages import Interpolate
from vfm.interfaces import Context, Evaluation, LinesPanel, Score, Series, short_name
from vfm.models.clip.clip import ClipModel
from vfm.train.loop.evaluations import run_evaluations
from vfm.train.parallel.dist import DistributedWorld, prepare_device

Scores = Mapping[str, Score | float]
"""The scores of a model in an evaluation by metric, as plain values if the evaluation keeps no items."""


@dataclass(frozen=True)
class Point:
    """A score of a model, and its gain over the first model of the line.

    The gain is (difference, low, high), paired by items.
    """

    value: float
    gain: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, score: Score | float, first: Score | float) -> Point:
        """Compare a score with the score of the first model."""
        if isinstance(score, float | int) or isinstance(first, float | int):
            return cls(float(score) if isinstance(score, float | int) else score.value)
        if score is first:  # the paired test alone would give an interval around 0, although the models are the same
            return cls(score.value, (0.0, 0.0, 0.0))
        difference = score.difference(first)
        return cls(score.value, (score.value - first.value, difference.low, difference.high))


Line = Sequence[Mapping[str, Point]]
"""The points of the A models by metric."""


def evaluate_line(config: Interpolate, ctx: Context, mixed: Callable[[float], ClipModel]) -> None:
    """Evaluate models along the line, and write `line.jsonl` and a panel for each evaluation.

    Args:
        config: Configuration of the stage.
        ctx: Context of the stage.
        mixed: Computes the model at a position from 0 to 1.
    """
    device = prepare_device(config.runtime)
    alphas = sorted({*config.evaluation.alphas, config.alpha})
    first: dict[str, Scores] = {}
    lines: defaultdict[str, list[Mapping[str, Point]]] = defaultdict(list)
    with (ctx.directory / "line.jsonl").open("w", encoding="utf-8") as file:
        for number, alpha in enumerate(alphas, start=1):
            model = mixed(alpha).to(device)
            for evaluation, scores in run_evaluations(
                ctx, config.evaluation.tasks, model, DistributedWorld(device), _scores
            ):
                # All gains are relative to the first model of the line.
                start = first.setdefault(evaluation.name, scores)
                points = {}
                values = {}
                gains = {}
                for name, score in scores.items():
                    point = Point.of(score, start[name])
                    points[name] = point
                    values[name] = point.value
                    if point.gain:
                        gains[name] = point.gain
                lines[evaluation.name].append(points)
                record = {"alpha": alpha, "eval": evaluation.name, **values, "gains": gains}
                file.write(json.dumps(record) + "\n")
            ctx.progress(number, len(alphas), "models")
    bands = f"Bands: 95 % intervals of the difference from the model at {alphas[0]:g}, paired by items."
    ends = f"From '{config.start}' (0) to '{config.end}' (1). This stage saves the model at {config.alpha:g}."
    for order, (name, line) in enumerate(lines.items(), start=10):
        series = []
        for metric in line[0]:
            if "/" not in metric:  # scores of groups would be too many curves
                series.append(_series(metric, alphas, line, metric))
        title = f"Interpolated models: {name.replace('_', ' ')}"
        note = f"{ends} {bands}" if any(curve.low for curve in series) else ends
        ctx.panel(LinesPanel(title=title, note=note, order=order, series=series, x_label="alpha", y_label="score"))
    if len(lines) > 1:
        ctx.panel(trade_off_panel(lines, short_name(config.end), bands))


def trade_off_panel(lines: Mapping[str, Line], curve: str, bands: str) -> LinesPanel:
    """Plot the first score of each further evaluation over the first score of the first one, with a point per model.

    Args:
        lines: Points by evaluation.
        curve: Name of the line in the chart that joins all lines of a run.
        bands: Sentence that explains the bands.
    """

    def label(name: str) -> str:
        return f"{name} {_main(lines[name])}".replace("_", " ")

    base, *others = lines
    x = [points[_main(lines[base])].value for points in lines[base]]
    series = [_series(label(name), x, lines[name], _main(lines[name])) for name in others]
    note = "Each point is one of the interpolated models, in the order of alpha."
    if any(line.low for line in series):
        note += f" {bands}"
    return LinesPanel(
        title="Trade-off between evaluations",
        note=note,
        order=9,
        series=series,
        x_label=label(base),
        y_label="score" if len(others) > 1 else label(others[0]),
        curve=curve,
    )


def _series(name: str, x: Sequence[float], line: Line, score: str) -> Series:
    """Build the curve of a score, with a band around it if the scores of all items are known."""
    first = line[0][score].value
    values: list[float | None] = []
    low: list[float | None] = []
    high: list[float | None] = []
    for points in line:
        point = points[score]
        values.append(point.value)
        if point.gain:
            low.append(first + point.gain[1])
            high.append(first + point.gain[2])
    if len(low) < len(line):
        return Series(name=name, x=[*x], y=values)
    return Series(name=name, x=[*x], y=values, low=low, high=high)


def _scores(evaluation: Evaluation, ctx: Context, encoder: Any) -> Scores:
    if isinstance(evaluation, ModelEvaluation):
        return {score.metric: score for score in evaluation.scored(ctx, encoder)}
    return evaluation.scores(ctx, encoder)


def _main(line: Line) -> str:
    """Find the first metric of an evaluation."""
    return next(iter(line[0]))
