"""The learning rates of EoMT's and of mmsegmentation's trainings."""

from __future__ import annotations

from collections.abc import Callable

from vfm_eva.dense.segment.stages import EvaSegment, PolySchedule


def poly(schedule: PolySchedule, lr: float, num_steps: int) -> Callable[[int], float]:
    """Return a linear warm-up, then `lr` times a power of the share of the steps after it that is left."""
    start = schedule.warmup_steps

    def rate(step: int) -> float:
        if step < start:
            return lr * (step + 1) / start
        return float(lr * (1 - (step - start) / max(1, num_steps - start)) ** schedule.power)

    return rate


def encoder_rate(config: EvaSegment) -> Callable[[int], float] | None:
    """Return the encoder's learning rate before layer decay, if it has a warm-up of its own.

    It is 0 while the head warms up; then the schedule of the training begins for it, over the steps that are left.

    Source: Kerssies et al. 2025, EoMT (arXiv:2503.19108), whose code waits 500 steps and warms up over 1,000.
    """
    if config.encoder_warmup_steps is None:
        return None
    wait = config.schedule.warmup_steps
    later = config.schedule.model_copy(update={"warmup_steps": config.encoder_warmup_steps})
    rate: Callable[[int], float] = later.build(config.lr, config.num_steps - wait)
    return lambda step: rate(step - wait) if step >= wait else 0.0
