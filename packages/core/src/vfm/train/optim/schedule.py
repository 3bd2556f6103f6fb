"""Learning rate schedules: the rate of each optimizer step, without the `lr_scale` of parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable

from vfm.interfaces import ConstantSchedule, CosineSchedule, PolySchedule, Schedule, StepSchedule, WarmupStableDecay

Rate = Callable[[int], float]
"""Learning rate of an optimizer step; the first step is 0."""


def cosine(schedule: CosineSchedule, lr: float, num_steps: int) -> Rate:
    """Create half a cosine from `lr` to `min_lr`, which it would reach at step `num_steps`, as in open_clip."""
    start, low = schedule.warmup_steps, schedule.min_lr

    def rate(step: int) -> float:
        done = (step - start) / max(1, num_steps - start)
        return low + (lr - low) * 0.5 * (1 + math.cos(math.pi * done))

    return warmed_up(schedule, lr, rate)


def constant(schedule: ConstantSchedule, lr: float, num_steps: int) -> Rate:
    """Create a schedule with `lr` for all steps after the warm-up."""
    return warmed_up(schedule, lr, lambda step: lr)


def warmup_stable_decay(schedule: WarmupStableDecay, lr: float, num_steps: int) -> Rate:
    """Create a schedule with `lr` until the last `decay_steps`, then a decay to `min_lr`, reached at `num_steps`."""
    start = num_steps - schedule.decay_steps
    low = schedule.min_lr

    def rate(step: int) -> float:
        done = max(0.0, (step - start) / schedule.decay_steps)
        share = {"linear": 1 - done, "sqrt": 1 - math.sqrt(done), "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return low + (lr - low) * share[schedule.shape]

    return warmed_up(schedule, lr, rate)


def steps(schedule: StepSchedule, lr: float, num_steps: int) -> Rate:
    """Create a schedule with `lr`, divided by 10 after each share of the steps in `at`, also during the warm-up."""
    # Shares, not numbers of steps, so that a recipe keeps its shape if `steps` is changed.
    starts = [share * num_steps for share in schedule.at]

    def rate(step: int) -> float:
        if schedule.warmup_steps:
            warm = min(1.0, (step + 1) / schedule.warmup_steps)
        else:
            warm = 1.0
        return lr * warm * 0.1 ** sum(step >= start for start in starts)

    return rate


def poly(schedule: PolySchedule, lr: float, num_steps: int) -> Rate:
    """Create a schedule with `lr` times a power of the remaining share of the steps after the warm-up."""
    start = schedule.warmup_steps

    def rate(step: int) -> float:
        return float(lr * (1 - (step - start) / max(1, num_steps - start)) ** schedule.power)

    return warmed_up(schedule, lr, rate)


def warmed_up(schedule: Schedule, lr: float, rate: Rate) -> Rate:
    """Prepend a linear warm-up over `warmup_steps`, the last of which has the full `lr`, to `rate`."""

    def with_warmup(step: int) -> float:
        if step < schedule.warmup_steps:
            return lr * (step + 1) / schedule.warmup_steps
        return rate(step)

    return with_warmup
