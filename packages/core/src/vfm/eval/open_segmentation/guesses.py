"""Scores of random guesses and of a perfect model on the patch grid, as a scale for reading mean IoU."""

# K classes, p the share of a class among the labelled pixels

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm.statistics.mean_iou import MeanIou, PixelCounts, count_pixels


def uniform_guess(shares: NDArray[np.float64]) -> float:
    """Compute the expected mean IoU, over all classes, if the class of each pixel is drawn uniformly.

    Args:
        shares: p of each class, (K,).
    """
    k = len(shares)
    iou = (shares / k) / (shares + 1 / k - shares / k)
    return float(iou.sum() / k)  # every class is predicted somewhere, so all count


def guess_by_shares(shares: NDArray[np.float64]) -> float:
    """Compute the expected mean IoU if the class of each pixel is drawn with the shares as probabilities."""
    seen = shares[shares > 0]
    return float((seen / (2 - seen)).mean())


def one_class(shares: NDArray[np.float64]) -> float:
    """Compute the mean IoU of predicting the most frequent class everywhere."""
    return float(shares.max() / max(1, (shares > 0).sum()))


def grid_map(truth: NDArray[np.integer], grid: tuple[int, int], num_classes: int) -> NDArray[np.int64]:
    """Find the most frequent class in each cell of a grid, and paint it at the size of the truth, (H, W).

    Args:
        truth: Class of each pixel, -1 if ignored, (H, W).
        grid: Number of rows and columns of cells.
        num_classes: Number of classes, K.
    """
    rows = _cells_along(truth.shape[0], grid[0])
    columns = _cells_along(truth.shape[1], grid[1])
    cells = rows[:, None] * grid[1] + columns[None]
    known = truth >= 0
    flat = np.bincount(cells[known] * num_classes + truth[known], minlength=grid[0] * grid[1] * num_classes)
    best = flat.reshape(-1, num_classes).argmax(axis=1)
    return np.asarray(best[cells])


def _cells_along(side: int, count: int) -> NDArray[np.int64]:
    """Find the cell that contains the centre of each pixel along a side."""
    cells = np.minimum((np.arange(side) + 0.5) * count // side, count - 1)
    return np.asarray(cells, dtype=np.int64)


def ceiling_counts(truth: NDArray[np.integer], grid: tuple[int, int], num_classes: int) -> PixelCounts:
    """Count the pixels of `grid_map`, the best map that the grid allows."""
    return count_pixels(truth, grid_map(truth, grid, num_classes), num_classes)


def class_shares(counts: MeanIou) -> NDArray[np.float64]:
    """Compute the share of each class among the labelled pixels, (K,)."""
    true = counts.true.sum(axis=0)
    return np.asarray(true / max(1, true.sum()))
