"""What guesses and a perfect model on the patch grid reach: the scale on which a mean IoU is to be read."""

# K classes, p the share of a class among the labelled pixels

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm.statistics.mean_iou import MeanIou, PixelCounts, count_pixels


def uniform_guess(shares: NDArray[np.float64]) -> float:
    """Return the expected mean IoU of a class drawn uniformly for each pixel, over all classes.

    Args:
        shares: p of each class, (K,).
    """
    k = len(shares)
    iou = (shares / k) / (shares + 1 / k - shares / k)
    return float(iou.sum() / k)  # every class is predicted somewhere, so all count


def guess_by_shares(shares: NDArray[np.float64]) -> float:
    """Return the expected mean IoU of a class drawn by the shares for each pixel."""
    seen = shares[shares > 0]
    return float((seen / (2 - seen)).mean())


def one_class(shares: NDArray[np.float64]) -> float:
    """Return the mean IoU of the most frequent class everywhere."""
    return float(shares.max() / max(1, (shares > 0).sum()))


def grid_map(truth: NDArray[np.integer], grid: tuple[int, int], num_classes: int) -> NDArray[np.int64]:
    """Return the most frequent class of each cell of a grid, at the truth's size, (H, W).

    Args:
        truth: class of each pixel, -1: ignored, (H, W).
        grid: rows and columns of the cells.
        num_classes: K.
    """
    rows, columns = (
        np.minimum((np.arange(side) + 0.5) * cells // side, cells - 1).astype(np.int64)
        for side, cells in zip(truth.shape, grid, strict=True)
    )
    cells = rows[:, None] * grid[1] + columns[None]
    known = truth >= 0
    flat = np.bincount(cells[known] * num_classes + truth[known], minlength=grid[0] * grid[1] * num_classes)
    best = flat.reshape(-1, num_classes).argmax(axis=1)
    return np.asarray(best[cells])


def ceiling_counts(truth: NDArray[np.integer], grid: tuple[int, int], num_classes: int) -> PixelCounts:
    """Return the pixel counts of `grid_map`."""
    return count_pixels(truth, grid_map(truth, grid, num_classes), num_classes)


def class_shares(counts: MeanIou) -> NDArray[np.float64]:
    """Return the share of each class among the labelled pixels, (K,)."""
    true = counts.true.sum(axis=0)
    return np.asarray(true / max(1, true.sum()))
