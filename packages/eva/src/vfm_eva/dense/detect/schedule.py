"""The learning rate of detectron2's trainings."""

from __future__ import annotations

from collections.abc import Callable

from vfm_eva.dense.detect.stages import StepSchedule


def steps(schedule: StepSchedule, lr: float, num_steps: int) -> Callable[[int], float]:
    """Return a linear warm-up, then `lr`, divided by 10 after each share of the steps in `at`."""
    starts = [share * num_steps for share in schedule.at]

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
        return lr * warm * 0.1 ** sum(step >= start for start in starts)

    return rate
