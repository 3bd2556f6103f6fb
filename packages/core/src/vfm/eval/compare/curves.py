"""Compare the curves of training runs by loss spikes and by the samples needed to reach a score."""

# T steps

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm.base import UserError, did_you_mean
from vfm.eval.compare.stages import CurveComparison
from vfm.interfaces import Context, LinesPanel, Metric, Panel, Report, Series, short_name
from vfm.statistics import wilson_interval
from vfm.storage.store_files import read_json_lines, reading
from vfm.train import METRICS_FILE


def compare_curves(config: CurveComparison, ctx: Context) -> Report:
    """Report curves, loss spikes, and the samples each run needed to reach the first one's final score.

    The curves are read from the `metrics.jsonl` of each training run.
    """
    runs = {}
    for ref in config.models:
        file = ctx.load(ref).path / METRICS_FILE
        if not file.is_file():
            raise UserError(f"{ref}: has no {METRICS_FILE}; expected a model that was trained by vfm")
        runs[short_name(ref)] = TrainingCurves.read(file)
    first = next(iter(runs.values()))
    if config.score and config.score not in first.scores:
        hint = did_you_mean(config.score, first.scores)
        raise UserError(f"score: {config.models[0]} did not log {config.score}{hint}")
    score = config.score or next(iter(first.scores), None)
    metrics = []
    for name, curves in runs.items():
        metrics += _spikes(ctx, name, curves, window=config.window, num_mads=config.num_mads)
    if score:
        metrics += _samples_to_reach(runs, score, goal=first.scores[score][-1][1])
        metrics += _means_over_training(runs, score)
    for panel in _panels(runs, score):
        ctx.panel(panel)
    return Report.create(ctx.directory, task="curves", dataset=score or "train/loss", metrics=metrics)


@dataclass
class TrainingCurves:
    """Curves from the `metrics.jsonl` of a training run.

    They are the loss by step, and evaluation scores by samples seen.
    """

    steps: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    scores: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # name -> (samples, value)

    @classmethod
    def read(cls, file: Path) -> TrainingCurves:
        """Read the file of a finished run."""
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
    """Find steps whose loss exceeds the median of the `window` preceding steps by `num_mads` deviations.

    Medians are robust to the spikes themselves, so one spike does not hide the next.

    Args:
        loss: Loss of each step, (T,).
        window: Number of preceding steps that a step is compared with.
        num_mads: Threshold above the median, in median absolute deviations.

    Returns:
        True at the spikes, (T - window,), empty for a run without more than `window` steps.
    """
    losses = np.asarray(loss, dtype=np.float64)
    if len(losses) <= window:
        return np.zeros(0, dtype=bool)
    before = np.lib.stride_tricks.sliding_window_view(losses, window)[:-1]  # (T - window, window)
    median = np.median(before, axis=1)
    deviation = np.median(np.abs(before - median[:, None]), axis=1)
    return np.asarray(losses[window:] > median + num_mads * deviation)


def samples_to_reach(curve: Sequence[tuple[int, float]], goal: float) -> float | None:
    """Interpolate the number of samples at which a score first reached `goal`.

    A score that never did gives None.
    """
    before: tuple[int, float] | None = None
    for samples, score in curve:
        if score >= goal:
            if before is None or score == before[1]:
                return float(samples)
            # The score crosses the goal between two evaluations.
            return before[0] + (samples - before[0]) * (goal - before[1]) / (score - before[1])
        before = samples, score
    return None


def mean_over_log_samples(curve: Sequence[tuple[int, float]]) -> float | None:
    """Compute the area under a score over the logarithm of the samples, divided by its width.

    It is large for a run that learns early, and does not depend on a goal that other runs may never reach.

    Args:
        curve: Numbers of samples and scores, in the order of training.

    Returns:
        The mean score, or None with fewer than two evaluations after the start.
    """
    points = [(samples, score) for samples, score in curve if samples > 0]
    if len(points) < 2:
        return None
    samples, scores = np.array(points).T
    widths = np.diff(np.log(samples))
    heights = (scores[1:] + scores[:-1]) / 2
    return float((widths * heights).sum() / widths.sum())


def _spikes(ctx: Context, name: str, curves: TrainingCurves, *, window: int, num_mads: float) -> list[Metric]:
    """Compute the share of spikes among the steps. The list is empty if the run is too short or skipped steps."""
    if curves.steps != list(range(1, len(curves.steps) + 1)):
        ctx.warn(f"{name}: no loss_spikes: means over several steps hide them; train with log_every: 1")
        return []
    spikes = loss_spikes(curves.loss, window=window, num_mads=num_mads)
    if not len(spikes):
        return []
    low, high = wilson_interval(int(spikes.sum()), len(spikes))
    return [Metric(name="loss_spikes", value=float(spikes.mean()), n=len(spikes), low=low, high=high, model=name)]


def _samples_to_reach(runs: Mapping[str, TrainingCurves], score: str, goal: float) -> list[Metric]:
    """Compute the samples that each run needed. A single run has no interval, so both ends equal the value."""
    metrics = []
    for name, curves in runs.items():
        samples = samples_to_reach(curves.scores.get(score, []), goal)
        if samples is not None:
            interval = {"value": samples, "low": samples, "high": samples}
            metrics.append(Metric(name="samples_to_reach", unit="samples", n=1, model=name, **interval))
    return metrics


def _means_over_training(runs: Mapping[str, TrainingCurves], score: str) -> list[Metric]:
    """Compute the mean score of each run over its training. A single run has no interval."""
    metrics = []
    for name, curves in runs.items():
        mean = mean_over_log_samples(curves.scores.get(score, []))
        if mean is not None:
            metrics.append(Metric(name="mean_over_log_samples", value=mean, low=mean, high=mean, n=1, model=name))
    return metrics


def _panels(runs: Mapping[str, TrainingCurves], score: str | None) -> list[Panel]:
    losses = []
    scores = []
    for name, curves in runs.items():
        losses.append(Series(name=name, x=list(map(float, curves.samples)), y=curves.loss))
        if score in curves.scores:
            samples, values = zip(*curves.scores[score], strict=True)
            scores.append(Series(name=name, x=list(map(float, samples)), y=list(values)))
    panels: list[Panel] = [LinesPanel(title="Losses", order=10, x_label="samples", y_label="loss", series=losses)]
    if score:
        panels.append(LinesPanel(title="Scores", order=11, x_label="samples", y_label=score, series=scores))
    return panels
