"""The scales of the report's bars, intervals, time line and curves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SMALLEST_RANGE = 0.05  # smallest range of an axis of curves, relative to its largest value


@dataclass(frozen=True)
class Scale:
    """Maps values to percent of a strip's width, with room for a dot at both ends."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Scale:
        """Build the scale from zero, or a smaller value, to the largest of the finite values."""
        finite = [value for value in values if value is not None and math.isfinite(value)]
        low = min([0.0, *finite])
        high = max([0.0, *finite])
        return cls(low, high if high > low else low + 1.0)

    def __call__(self, value: float) -> float:
        """Compute the position of a value, in percent of the width."""
        if not math.isfinite(value):
            return 1.0
        share = (value - self.low) / (self.high - self.low)
        return round(1 + 98 * min(1.0, max(0.0, share)), 2)


def calm_limits(low: float, high: float, smallest: float = SMALLEST_RANGE) -> tuple[float, float]:
    """Choose the limits of an axis without exaggerating small changes.

    The range is at least `smallest` times the largest absolute value: 0.4374 to 0.4375 is a flat line in the middle of
    0.4265 to 0.4484, while 2.3 to 0.4 keeps its limits. Zeros alone are drawn from 0 to 1.

    Args:
        low: Smallest value.
        high: Largest value.
        smallest: Smallest range, as a fraction.
    """
    largest = max(abs(low), abs(high))
    if largest == 0:
        return 0.0, 1.0
    missing = max(0.0, smallest * largest - (high - low)) / 2
    return low - missing, high + missing
