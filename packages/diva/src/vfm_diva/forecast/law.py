"""The gain of feedback on an attribute is proportional to what the generator knows and to what CLIP lacks.

    gain = slope x (preference - 1/2) x (1 - accuracy)

The preference is the share of images that the generator denoises better with the right statement than with the wrong
one of their pair, 1/2 by chance. The accuracy is CLIP's accuracy on pairs before the feedback.
"""

# C cells: an attribute in one set-up each

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # imports `scipy.stats` when it is used
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        slope: Gain of an attribute that the generator always knows and CLIP never, times two.
        spread: Standard deviation of the gains around the law.
        squares: Sum of the squared exposures that it was fitted on.
        degrees: Cells that it was fitted on, minus one.
    """

    slope: float
    spread: float
    squares: float
    degrees: int

    @property
    def slope_error(self) -> float:
        """Half width of the slope's 95 % interval."""
        return self._quantile * self.spread / float(np.sqrt(self.squares))

    @property
    def _quantile(self) -> float:
        return float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, self.degrees))

    def predict(self, exposure: ArrayLike) -> tuple[Floats, Floats]:
        """Predict gains from exposures, (C,), and compute the half widths of their 95 % prediction intervals."""
        x = np.asarray(exposure, dtype=np.float64)
        return self.slope * x, self._quantile * self.spread * np.sqrt(1 + x**2 / self.squares)


LAW = Law(slope=0.789, spread=0.0633, squares=2.08, degrees=199)
"""Fitted to the 200 cells of five seeds of the recipe `diva_law` (packages/diva/benchmarks/law.py).

94 % of a seed's gains are in the 95 % intervals of the law that is fitted to the four other seeds. The models and the
images are small and synthetic.
"""


def exposure(preference: ArrayLike, accuracy: ArrayLike) -> Floats:
    """Compute (preference - 1/2) x (1 - accuracy), both from 0 to 1, (C,)."""
    return (np.asarray(preference, dtype=np.float64) - 0.5) * (1 - np.asarray(accuracy, dtype=np.float64))


def fit_law(exposures: ArrayLike, gains: ArrayLike) -> Law:
    """Fit the slope to the gains of cells, (C,) each, by least squares through the origin.

    Raises:
        ValueError: If there are fewer than two cells, or no exposure differs from 0.
    """
    x, y = np.asarray(exposures, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    squares = float(x @ x)
    if len(x) < 2 or squares == 0:
        raise ValueError(f"expected two cells or more, with an exposure other than 0; got {len(x)} cells")
    slope = float(x @ y) / squares
    freedom = len(x) - 1
    spread = np.sqrt(np.sum((y - slope * x) ** 2) / freedom)
    return Law(slope, float(spread), squares, freedom)


def predict_held_out(exposures: ArrayLike, gains: ArrayLike, in_first: ArrayLike) -> Floats:
    """Predict the gain of each cell, (C,), by the law fitted on the other half of the cells.

    Args:
        exposures: Exposure of each cell, (C,).
        gains: Measured gain of each cell, (C,).
        in_first: Whether a cell is in the first half, (C,) bool.

    Raises:
        ValueError: If a half cannot be fitted (`fit_law`).
    """
    x, y, first = np.asarray(exposures, float), np.asarray(gains, float), np.asarray(in_first, bool)
    predicted = np.empty_like(y)
    for half in (first, ~first):
        predicted[half] = fit_law(x[~half], y[~half]).slope * x[half]
    return predicted


def explained_share(predicted: ArrayLike, gains: ArrayLike) -> float:
    """Compute the share of the gains' variance that predictions explain, at most 1. At 0 the mean predicts as well.

    It is NaN if all gains are equal.
    """
    y = np.asarray(gains, dtype=np.float64)
    squares = float(np.sum((y - y.mean()) ** 2))
    if not squares:
        return math.nan
    return float(1 - np.sum((y - np.asarray(predicted)) ** 2) / squares)
