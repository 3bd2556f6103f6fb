"""The learning rate of EoMT's and of mmsegmentation's trainings."""

from __future__ import annotations

from collections.abc import Callable

from vfm_eva.stages_segment import PolySchedule


def poly(schedule: PolySchedule, lr: float, num_steps: int) -> Callable[[int], float]:
    """Return a linear warm-up, then `lr` times a power of the share of the steps after it that is left."""
    start = schedule.warmup_steps

    def rate(step: int) -> float:
        if step < start:
            return lr * (step + 1) / start
        return float(lr * (1 - (step - start) / max(1, num_steps - start)) ** schedule.power)

    return rate
