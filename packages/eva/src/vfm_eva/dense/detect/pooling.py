"""Pool box features from the pyramid level that suits the size of each box."""

# B images, R boxes of all images, C channels, P side of a pooled map

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

CANONICAL_SIZE, CANONICAL_STRIDE = 224, 16  # a box of 224 pixels is pooled from the map of stride 16


def pool_boxes(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Sequence[Tensor],
    size: int,
    *,
    aligned: bool = True,
    samples: int = 0,
) -> Tensor:
    """Pool the features of boxes, (R, C, P, P).

    Args:
        maps: Feature maps by level, (B, C, h, w) each, the finest first.
        strides: Stride of each level in pixels, each twice the previous.
        boxes: Boxes of each image, (R_i, 4).
        size: Side of a pooled map, P.
        aligned: Pixels have their centres at halves (detectron2's `ROIAlignV2`), else at whole numbers (torchvision's
            `MultiScaleRoIAlign`).
        samples: Sampling points along a side of each cell. 0: as many as the cell has pixels.

    Sources: Lin et al. 2016, FPN (arXiv:1612.03144), equation 1, and He et al. 2017, Mask R-CNN (arXiv:1703.06870).
    """
    parts = []
    for number, rows in enumerate(boxes):
        parts.append(torch.cat([rows.new_full((rows.shape[0], 1), number), rows], dim=1))
    numbered = torch.cat(parts)  # (R, 5): number of the image, then the box
    levels = choose_levels(numbered[:, 1:], strides)
    pooled = maps[0].new_zeros(numbered.shape[0], maps[0].shape[1], size, size)
    # Pool from a level without boxes too, so that every map always gets a gradient.
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        rows = torch.where(levels == level)[0]
        aligned_rows = roi_align(features, numbered[rows].to(features.dtype), size, 1 / stride, samples, aligned)
        pooled = pooled.index_put((rows,), aligned_rows.to(pooled.dtype))
    return pooled


def choose_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Choose the pyramid level of each box, (R, 4) to (R,)."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    # Equation 1 of FPN (arXiv:1612.03144), counted from the finest map. 1e-8 keeps the logarithm of an empty box
    # finite.
    first = torch.tensor(strides[0] / CANONICAL_STRIDE).log2()
    levels = torch.floor(torch.log2(sides / CANONICAL_SIZE + 1e-8)) - first
    return levels.clamp(0, len(strides) - 1).long()
