"""What the curves of a training say: how steady it was, and how many samples it took to get somewhere."""

# T steps

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass
class Trail:
    """A training's `metrics.jsonl`: the loss by step, and each score of its `evals` by samples seen."""

    steps: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    scores: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # name -> (samples, value)

    @classmethod
    def read(cls, file: Path) -> Trail:
        """Reads the lines of a finished training."""
        trail = cls()
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            if line["split"] == "train":
                trail.steps.append(line["step"])
                trail.samples.append(line["samples"])
                trail.loss.append(line["train/loss"])
            else:
                for name, value in line.items():
                    if name.startswith("val/"):
                        trail.scores.setdefault(name, []).append((line["samples"], value))
        return trail


def loss_spikes(loss: ArrayLike, *, window: int = 51, num_mads: float = 3.0) -> NDArray[np.bool_]:
    """Steps whose loss exceeds the median of the `window` steps before by more than `num_mads` median deviations.

    Medians do not see the spikes themselves, so one does not hide the next.

    Args:
        loss: of each step, (T,).
        window: steps that a step is compared with.
        num_mads: how far above is a spike, in median absolute deviations from that median.

    Returns:
        (T - window,), empty where the training was shorter.
    """
    losses = np.asarray(loss, dtype=np.float64)
    if len(losses) <= window:
        return np.zeros(0, dtype=bool)
    before = np.lib.stride_tricks.sliding_window_view(losses, window)[:-1]  # (T - window, window)
    median = np.median(before, axis=1)
    deviation = np.median(np.abs(before - median[:, None]), axis=1)
    return np.asarray(losses[window:] > median + num_mads * deviation)


def samples_to_reach(curve: Sequence[tuple[int, float]], goal: float) -> float | None:
    """Samples seen when a score first reached `goal`, straight lines between its points; None where it never did."""
    before: tuple[int, float] | None = None
    for samples, score in curve:
        if score >= goal:
            if before is None or score == before[1]:
                return float(samples)
            return before[0] + (samples - before[0]) * (goal - before[1]) / (score - before[1])
        before = samples, score
    return None
