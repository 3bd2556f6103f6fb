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
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)))
    places = [
        (top, left)
        for top in window_starts(len(padded), side, step)
        for left in window_starts(padded.shape[1], side, step)
    ]
    total, count = torch.zeros(0), torch.zeros(padded.shape[:2])
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        crops = np.stack([padded[top : top + side, left : left + side] for top, left in part])
        scores = F.interpolate(torch.from_numpy(logits(crops)), size=(side, side), mode="bilinear", align_corners=False)
        if not len(total):
            total = torch.zeros(scores.shape[1], *padded.shape[:2])
        for (top, left), one in zip(part, scores, strict=True):
            total[:, top : top + side, left : left + side] += one
            count[top : top + side, left : left + side] += 1
    return (total / count)[:, :height, :width]


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
