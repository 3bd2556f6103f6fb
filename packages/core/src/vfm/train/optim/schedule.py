"""Compute the learning rate of each optimizer step, without the `lr_scale` of parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable

from vfm.interfaces import ConstantSchedule, CosineSchedule, PolySchedule, Schedule, StepSchedule, WarmupStableDecay

Rate = Callable[[int], float]
"""Learning rate of an optimizer step; the first step is 0."""


def cosine(schedule: CosineSchedule, lr: float, num_steps: int) -> Rate:
    """Create a schedule of half a cosine from `lr` to `min_lr`, as in open_clip.

    It would reach `min_lr` at step `num_steps`.

    Args:
        schedule: Settings of the schedule.
        lr: Peak learning rate.
        num_steps: Steps of the training.
    """
    start, low = schedule.warmup_steps, schedule.min_lr

    def rate(step: int) -> float:
        done = (step - start) / max(1, num_steps - start)
        return low + (lr - low) * 0.5 * (1 + math.cos(math.pi * done))

    return warmed_up(schedule, lr, rate)


def constant(schedule: ConstantSchedule, lr: float, num_steps: int) -> Rate:
    """Create a schedule with the same rate for all steps after the warm-up.

    Args:
        schedule: Settings of the schedule.
        lr: Peak learning rate.
        num_steps: Steps of the training.
    """
    return warmed_up(schedule, lr, lambda step: lr)


def warmup_stable_decay(schedule: WarmupStableDecay, lr: float, num_steps: int) -> Rate:
    """Create a schedule with a constant rate until the last `decay_steps`, then a decay to `min_lr`.

    Args:
        schedule: Settings of the schedule.
        lr: Peak learning rate.
        num_steps: Steps of the training. `min_lr` is reached there.
    """
    start = num_steps - schedule.decay_steps
    low = schedule.min_lr

    def rate(step: int) -> float:
        done = max(0.0, (step - start) / schedule.decay_steps)
        share = {"linear": 1 - done, "sqrt": 1 - math.sqrt(done), "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return low + (lr - low) * share[schedule.shape]

    return warmed_up(schedule, lr, rate)


def steps(schedule: StepSchedule, lr: float, num_steps: int) -> Rate:
    """Create a schedule whose rate is divided by 10 after each share of the steps in `at`, also during the warm-up.

    Args:
        schedule: Settings of the schedule.
        lr: Peak learning rate.
        num_steps: Steps of the training.
    """
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
    """Create a schedule with a power of the remaining share of the steps after the warm-up.

    Args:
        schedule: Settings of the schedule.
        lr: Peak learning rate.
        num_steps: Steps of the training.
    """
    start = schedule.warmup_steps

    def rate(step: int) -> float:
        return float(lr * (1 - (step - start) / max(1, num_steps - start)) ** schedule.power)

    return warmed_up(schedule, lr, rate)


def warmed_up(schedule: Schedule, lr: float, rate: Rate) -> Rate:
    """Prepend a linear warm-up to a schedule.

    Args:
        schedule: Settings of the schedule, with `warmup_steps`.
        lr: Peak learning rate. The last step of the warm-up has it.
        rate: Rate by step after the warm-up.
    """

    def with_warmup(step: int) -> float:
        if step < schedule.warmup_steps:
            return lr * (step + 1) / schedule.warmup_steps
        return rate(step)

    return with_warmup
