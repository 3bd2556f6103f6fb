"""Pixel-adaptive mask refinement: scores spread to neighbours of similar colour.

Source: Araslanov and Roth 2020, Single-stage semantic segmentation from image labels (arXiv:2005.08104), section 4.2,
with the settings that NACLIP's tables use.
"""

# K classes, O offsets, (H, W) size of an image

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

DILATIONS = (8, 16)  # distances of the neighbours in pixels
STEPS = 10
SHARPNESS = 0.1  # factor of the local standard deviation
SMALL = 1e-8  # against division by zero in areas of constant colour
NEIGHBOURS = list(product((-1, 0, 1), repeat=2))


def refine_scores(scores: Tensor, image: Tensor, steps: int = STEPS) -> Tensor:
    """Refine scores, (K, H, W), in rounds in which each pixel takes the weighted mean of its neighbours.

    The neighbours are the eight pixels at each distance in `DILATIONS`. Borders repeat the outermost pixels.

    Args:
        scores: Scores of the classes or words.
        image: (3, H, W), in any units, since they are divided by the local deviation.
        steps: Number of rounds.
    """
    around = [offset for offset in _offsets() if offset != (0, 0)]
    padded = _padded(image)
    local = torch.stack([_shifted(padded, offset, image.shape[1:]) for offset in _offsets()])  # (O, 3, H, W)
    spread = SMALL + SHARPNESS * local.std(dim=0)
    nearness = []
    for offset in around:
        difference = (image - _shifted(padded, offset, image.shape[1:])).abs()
        nearness.append(-(difference / spread).mean(dim=0))
    weights = torch.stack(nearness).softmax(dim=0)  # (O, H, W)
    for _ in range(steps):
        wide = _padded(scores)
        scores = torch.zeros_like(scores)
        for offset, weight in zip(around, weights, strict=True):
            scores += weight * _shifted(wide, offset, weight.shape)
    return scores


def _offsets() -> list[tuple[int, int]]:
    """List the offsets of the local window. The centre occurs once for each dilation."""
    return [(step * y, step * x) for step, (y, x) in product(DILATIONS, NEIGHBOURS)]


def _padded(image: Tensor) -> Tensor:
    return F.pad(image[None], [max(DILATIONS)] * 4, mode="replicate")[0]


def _shifted(padded: Tensor, offset: tuple[int, int], size: torch.Size) -> Tensor:
    top, left = max(DILATIONS) + offset[0], max(DILATIONS) + offset[1]
    return padded[:, top : top + size[0], left : left + size[1]]
