"""Learning-rate schedules: the rate of each optimizer step, before a parameter group's `lr_scale`."""

from __future__ import annotations

import math
from collections.abc import Callable

from vfm.interfaces import (
    ConstantSchedule,
    CosineSchedule,
    PolySchedule,
    Schedule,
    StepSchedule,
    WarmupStableDecay,
)

Rate = Callable[[int], float]
"""Learning rate of an optimizer step; the first step is 0."""


def cosine(schedule: CosineSchedule, lr: float, num_steps: int) -> Rate:
    """Return half a cosine from `lr` to `min_lr`, which it would reach at step `num_steps`, as in open_clip."""
    start, low = schedule.warmup_steps, schedule.min_lr

    def rate(step: int) -> float:
        done = (step - start) / max(1, num_steps - start)
        return low + (lr - low) * 0.5 * (1 + math.cos(math.pi * done))

    return warmed_up(schedule, lr, rate)


def constant(schedule: ConstantSchedule, lr: float, num_steps: int) -> Rate:
    """Return `lr` for all steps after the warm-up."""
    return warmed_up(schedule, lr, lambda step: lr)


def warmup_stable_decay(schedule: WarmupStableDecay, lr: float, num_steps: int) -> Rate:
    """Return `lr`, which falls to `min_lr` over the last `decay_steps`; it would reach it at step `num_steps`."""
    start, low = num_steps - schedule.decay_steps, schedule.min_lr

    def rate(step: int) -> float:
        done = max(0.0, (step - start) / schedule.decay_steps)
        left = {"linear": 1 - done, "sqrt": 1 - math.sqrt(done), "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return low + (lr - low) * left[schedule.shape]

    return warmed_up(schedule, lr, rate)


def steps(schedule: StepSchedule, lr: float, num_steps: int) -> Rate:
    """Return `lr`, divided by 10 after each share of the steps in `at`, also during the warm-up."""
    starts = [share * num_steps for share in schedule.at]

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
        return lr * warm * 0.1 ** sum(step >= start for start in starts)

    return rate


def poly(schedule: PolySchedule, lr: float, num_steps: int) -> Rate:
    """Return `lr` times a power of the share of the steps after the warm-up that is left."""
    start = schedule.warmup_steps

    def rate(step: int) -> float:
        return float(lr * (1 - (step - start) / max(1, num_steps - start)) ** schedule.power)

    return warmed_up(schedule, lr, rate)


def warmed_up(schedule: Schedule, lr: float, rate: Rate) -> Rate:
    """Return `rate` after a linear warm-up over `warmup_steps`, the last of which has the full `lr`."""
    return lambda step: lr * (step + 1) / schedule.warmup_steps if step < schedule.warmup_steps else rate(step)
