"""Semantic scores for an image of any size from overlapping square windows, at one or several scales.

Sources: windows as in mmsegmentation's `slide` mode with EVA's configurations, scales and flips as in the papers.
"""

# H, W height and width, S side of a window, K classes

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CropLogits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A function from square crops, uint8 (B, S, S, 3), to scores of the classes, (B, K, h, w)."""


def window_starts(length: int, side: int, step: int) -> list[int]:
    """Compute where windows begin along a side.

    Args:
        length: Length of the side. A side that is shorter than a window has one start.
        side: Side of a window.
        step: Pixels between windows. The last window is at the end.
    """
    if length <= side:
        return [0]
    return [min(start, length - side) for start in range(0, length - side + step, step)]


def slide(image: NDArray[np.uint8], logits: CropLogits, side: int, step: int, batch_size: int) -> Tensor:
    """Average the scores of all windows that cover a pixel, (K, H, W).

    Args:
        image: (H, W, 3). A side shorter than a window is padded with zeros.
        logits: Computes scores for crops.
        side: Side of a window, S.
        step: Distance between windows in pixels.
        batch_size: Number of crops per call.
    """
    padded = pad_to_window(image, side)
    places = window_places(padded.shape[:2], side, step)
    mean = WindowMean(padded.shape[:2], side)
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        crops = np.stack([padded[top : top + side, left : left + side] for top, left in part])
        mean.add(part, torch.from_numpy(logits(crops)))
    return mean.scores()[:, : image.shape[0], : image.shape[1]]


def pad_to_window(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pad an image, (H, W, 3), with zeros so that no side is shorter than a window."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)))


def window_places(size: tuple[int, ...], side: int, step: int) -> list[tuple[int, int]]:
    """List top and left of each window of an image, (H, W)."""
    return list(product(window_starts(size[0], side, step), window_starts(size[1], side, step)))


class WindowMean:
    """The mean score of all windows that cover a pixel."""

    def __init__(self, size: tuple[int, ...], side: int) -> None:
        """Start without windows.

        Args:
            size: Height and width of the image.
            side: Side of a window, S.
        """
        self.side = side
        self._total: Tensor | None = None
        self._count = torch.zeros(size[0], size[1])

    def add(self, places: Sequence[tuple[int, int]], scores: Tensor) -> None:
        """Add the scores of windows. They are enlarged to side S with bilinear interpolation.

        Args:
            places: Top and left of each window.
            scores: (B, K, h, w).
        """
        enlarged = F.interpolate(scores, size=(self.side, self.side), mode="bilinear", align_corners=False)
        if self._total is None:
            self._total = enlarged.new_zeros(enlarged.shape[1], *self._count.shape)
        for (top, left), window in zip(places, enlarged, strict=True):
            self._total[:, top : top + self.side, left : left + self.side] += window
            self._count[top : top + self.side, left : left + self.side] += 1

    def scores(self) -> Tensor:
        """Compute the mean, (K, H, W).

        Raises:
            ValueError: If no window was added.
        """
        if self._total is None:
            raise ValueError("expected at least one window, got none")
        return self._total / self._count.to(self._total.device)


def predict_labels(
    image: Image.Image,
    logits: CropLogits,
    side: int,
    *,
    stride: float = 2 / 3,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 8,
) -> NDArray[np.int64]:
    """Predict the class of each pixel, from the largest mean probability over scales and flips.

    Args:
        image: The image.
        logits: Computes the logits of crops.
        side: Side of a window. At scale 1 the shorter side of the image is as long.
        stride: Step between windows, as a fraction of their side.
        scales: Factors of the image's size.
        flip: Also predict the mirrored image.
        batch_size: Windows of a forward pass.

    Returns:
        (H, W).
    """
    size = (image.height, image.width)
    total: Tensor | float = 0.0
    for scale in scales:
        factor = scale * side / min(size)
        resized = image.resize(
            (max(1, round(factor * size[1])), max(1, round(factor * size[0]))), Image.Resampling.BILINEAR
        )
        for mirrored in (False, True) if flip else (False,):
            pixels = np.asarray(resized)[:, ::-1] if mirrored else np.asarray(resized)
            scores = slide(pixels, logits, side, max(1, round(stride * side)), batch_size)
            scores = scores.flip(-1) if mirrored else scores
            full = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
            total = total + full.softmax(dim=0)  # probabilities, since scores of different scales are not comparable
    assert isinstance(total, Tensor)
    labels: NDArray[np.int64] = total.argmax(dim=0).numpy()
    return labels
