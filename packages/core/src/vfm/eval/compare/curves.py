"""Comparison of trainings by their curves: loss spikes, and the samples needed to reach a score."""

# T steps

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm.base import UserError, did_you_mean
from vfm.eval.compare.stages import Curves
from vfm.interfaces import Context, LinesPanel, Metric, Panel, Report, Series, short_name
from vfm.statistics import wilson_interval
from vfm.storage.store_files import read_json_lines, reading
from vfm.train import METRICS_FILE


def compare_curves(config: Curves, ctx: Context) -> Report:
    """Read each training's `metrics.jsonl`; report curves, loss spikes, and samples to the first's final score."""
    trainings = {}
    for ref in config.models:
        file = ctx.load(ref).path / METRICS_FILE
        if not file.is_file():
            raise UserError(f"{ref}: has no {METRICS_FILE}; expected a model that was trained by vfm")
        trainings[short_name(ref)] = TrainingCurves.read(file)
    first = next(iter(trainings.values()))
    if config.score and config.score not in first.scores:
        hint = did_you_mean(config.score, first.scores)
        raise UserError(f"score: {config.models[0]} did not log {config.score}{hint}")
    score = config.score or next(iter(first.scores), None)
    metrics = []
    for name, curves in trainings.items():
        metrics += _spikes(ctx, name, curves, window=config.window, num_mads=config.num_mads)
    if score:
        metrics += _samples_to_reach(trainings, score, goal=first.scores[score][-1][1])
    for panel in _panels(trainings, score):
        ctx.panel(panel)
    return Report.create(ctx.directory, task="curves", dataset=score or "train/loss", metrics=metrics)


@dataclass
class TrainingCurves:
    """Curves of a training's `metrics.jsonl`: the loss by step, and each score of its evaluations by samples seen."""

    steps: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    scores: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # name -> (samples, value)

    @classmethod
    def read(cls, file: Path) -> TrainingCurves:
        """Read the file of a finished training."""
        curves = cls()
        with reading(file, "the metrics of a training"):
            for line in read_json_lines(file):
                if line["split"] == "train":
                    curves.steps.append(line["step"])
                    curves.samples.append(line["samples"])
                    curves.loss.append(line["train/loss"])
                else:
                    for name, value in line.items():
                        if name.startswith("val/"):
                            curves.scores.setdefault(name, []).append((line["samples"], value))
        return curves


def loss_spikes(loss: ArrayLike, *, window: int, num_mads: float) -> NDArray[np.bool_]:
    """Return True for steps whose loss exceeds the median of the `window` preceding steps by `num_mads` deviations.

    Medians are robust to the spikes themselves, so one spike does not hide the next.

    Args:
        loss: of each step, (T,).
        window: preceding steps that a step is compared with.
        num_mads: threshold above the median, in median absolute deviations.

    Returns:
        (T - window,), empty for a training shorter than that.
    """
    losses = np.asarray(loss, dtype=np.float64)
    if len(losses) <= window:
        return np.zeros(0, dtype=bool)
    before = np.lib.stride_tricks.sliding_window_view(losses, window)[:-1]  # (T - window, window)
    median = np.median(before, axis=1)
    deviation = np.median(np.abs(before - median[:, None]), axis=1)
    return np.asarray(losses[window:] > median + num_mads * deviation)


def samples_to_reach(curve: Sequence[tuple[int, float]], goal: float) -> float | None:
    """Return the samples seen when a score first reached `goal`, interpolated linearly; None if it never did."""
    before: tuple[int, float] | None = None
    for samples, score in curve:
        if score >= goal:
            if before is None or score == before[1]:
                return float(samples)
            return before[0] + (samples - before[0]) * (goal - before[1]) / (score - before[1])
        before = samples, score
    return None


def _spikes(ctx: Context, name: str, curves: TrainingCurves, *, window: int, num_mads: float) -> list[Metric]:
    """Return the share of spikes among the steps; nothing if the window is longer, or not every step was logged."""
    if curves.steps != list(range(1, len(curves.steps) + 1)):
        ctx.warn(f"{name}: no loss_spikes: means over several steps hide them; train with log_every: 1")
        return []
    spikes = loss_spikes(curves.loss, window=window, num_mads=num_mads)
    if not len(spikes):
        return []
    low, high = wilson_interval(int(spikes.sum()), len(spikes))
    return [Metric(name="loss_spikes", value=float(spikes.mean()), n=len(spikes), low=low, high=high, model=name)]


def _samples_to_reach(trainings: Mapping[str, TrainingCurves], score: str, goal: float) -> list[Metric]:
    """Return the samples each training needed; one training's number has no interval, several seeds give one."""
    metrics = []
    for name, curves in trainings.items():
        samples = samples_to_reach(curves.scores.get(score, []), goal)
        if samples is not None:
            interval = {"value": samples, "low": samples, "high": samples}
            metrics.append(Metric(name="samples_to_reach", unit="samples", n=1, model=name, **interval))
    return metrics


def _panels(trainings: Mapping[str, TrainingCurves], score: str | None) -> list[Panel]:
    loss = [Series(name=name, x=list(map(float, t.samples)), y=t.loss) for name, t in trainings.items()]
    panels: list[Panel] = [LinesPanel(title="Losses", order=10, x_label="samples", y_label="loss", series=loss)]
    if score:
        curves = {name: training.scores.get(score, []) for name, training in trainings.items()}
        series = [Series(name=name, x=[float(s) for s, _ in c], y=[y for _, y in c]) for name, c in curves.items() if c]
        panels.append(LinesPanel(title="Scores", order=11, x_label="samples", y_label=score, series=series))
    return panels
