"""Semantic scores of a picture of any size from square windows that overlap, at one scale or several.

Sources: the windows of mmsegmentation's `slide` mode as EVA's configurations use it; scales and flips as in the papers.
"""

# H, W height and width, S side of a window, K classes

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CropLogits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Scores of the classes for square crops: (B, S, S, 3) uint8 to (B, K, h, w)."""


def window_starts(length: int, side: int, step: int) -> list[int]:
    """Return where windows begin along a side: every `step` pixels, the last at the end; one on a short side."""
    if length <= side:
        return [0]
    return [min(start, length - side) for start in range(0, length - side + step, step)]


def slide(picture: NDArray[np.uint8], logits: CropLogits, side: int, step: int, batch_size: int) -> Tensor:
    """Return the mean score of all windows that cover a pixel, (K, H, W).

    Args:
        picture: (H, W, 3); a side shorter than a window is padded with zeros.
        logits: of crops.
        side: S.
        step: between windows.
        batch_size: crops per call.
    """
    padded = pad_to_window(picture, side)
    places = window_places(padded.shape[:2], side, step)
    mean = WindowMean(padded.shape[:2], side)
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        crops = np.stack([padded[top : top + side, left : left + side] for top, left in part])
        mean.add(part, torch.from_numpy(logits(crops)))
    return mean.scores()[:, : picture.shape[0], : picture.shape[1]]


def pad_to_window(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture, (H, W, 3), whose sides are those of a window at least; zeros are added."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)))


def window_places(size: tuple[int, ...], side: int, step: int) -> list[tuple[int, int]]:
    """Return top and left of each window of a picture, (H, W)."""
    return [(top, left) for top in window_starts(size[0], side, step) for left in window_starts(size[1], side, step)]


class WindowMean:
    """The mean score of all windows that cover a pixel."""

    def __init__(self, size: tuple[int, ...], side: int) -> None:
        """Begin with no window.

        Args:
            size: H and W.
            side: S.
        """
        self.side = side
        self._total: Tensor | None = None
        self._count = torch.zeros(size[0], size[1])

    def add(self, places: Sequence[tuple[int, int]], scores: Tensor) -> None:
        """Add the scores of windows, (B, K, h, w), which are enlarged to S (bilinear)."""
        enlarged = F.interpolate(scores, size=(self.side, self.side), mode="bilinear", align_corners=False)
        if self._total is None:
            self._total = enlarged.new_zeros(enlarged.shape[1], *self._count.shape)
        for (top, left), one in zip(places, enlarged, strict=True):
            self._total[:, top : top + self.side, left : left + self.side] += one
            self._count[top : top + self.side, left : left + self.side] += 1

    def scores(self) -> Tensor:
        """Return the mean, (K, H, W).

        Raises:
            ValueError: no window was added.
        """
        if self._total is None:
            raise ValueError("expected at least one window, got none")
        return self._total / self._count.to(self._total.device)


def predict_labels(
    picture: Image.Image,
    logits: CropLogits,
    side: int,
    *,
    stride: float = 2 / 3,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 8,
) -> NDArray[np.int64]:
    """Return the class of each pixel: the largest mean probability over scales and flips, (H, W).

    At scale 1 the shorter side of the picture is that of a window.
    """
    size = (picture.height, picture.width)
    total: Tensor | float = 0.0
    for scale in scales:
        factor = scale * side / min(size)
        resized = picture.resize(
            (max(1, round(factor * size[1])), max(1, round(factor * size[0]))), Image.Resampling.BILINEAR
        )
        for mirrored in (False, True) if flip else (False,):
            pixels = np.asarray(resized)[:, ::-1] if mirrored else np.asarray(resized)
            scores = slide(pixels, logits, side, max(1, round(stride * side)), batch_size)
            scores = scores.flip(-1) if mirrored else scores
            full = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
            total = total + full.softmax(dim=0)
    assert isinstance(total, Tensor)
    labels: NDArray[np.int64] = total.argmax(dim=0).numpy()
    return labels
