"""The horizontal scale of the report's bars, intervals and time line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps values to percent of a strip's width, with room for a dot at both ends."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Scale:
        """Return the scale from zero, or a smaller value, to the largest of the finite values."""
        finite = [value for value in values if value is not None and math.isfinite(value)]
        low, high = min([0.0, *finite]), max([0.0, *finite])
        return cls(low, high if high > low else low + 1.0)

    def __call__(self, value: float) -> float:
        """Return the place of a value, in percent of the width."""
        share = (value - self.low) / (self.high - self.low)
        return round(1 + 98 * min(1.0, max(0.0, share)), 2) if math.isfinite(value) else 1.0
