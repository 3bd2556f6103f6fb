"""Features of boxes from the pyramid level that suits their size."""

# B images, R boxes of all of them, C channels, P side of a pooled map

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

CANONICAL_SIZE, CANONICAL_STRIDE = 224, 16  # a box of 224 pixels is read from the map of stride 16


def pool_boxes(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Sequence[Tensor],
    size: int,
    *,
    aligned: bool = True,
    samples: int = 0,
) -> Tensor:
    """Return the features of boxes, (R, C, P, P).

    Args:
        maps: of each level, (B, C, h, w), the finest first.
        strides: of each level in pixels; each is twice the one before.
        boxes: of each image, (R_i, 4).
        size: P.
        aligned: pixels have their centres at halves (detectron2's `ROIAlignV2`), else at whole numbers (torchvision's
            `MultiScaleRoIAlign`).
        samples: points along a side of each cell; 0: as many as the cell has pixels.

    Source: Lin et al. 2016, FPN (arXiv:1612.03144), equation 1; He et al. 2017, Mask R-CNN (arXiv:1703.06870).
    """
    numbered = torch.cat([torch.cat([one.new_full((len(one), 1), n), one], dim=1) for n, one in enumerate(boxes)])
    levels = choose_levels(numbered[:, 1:], strides)
    pooled = maps[0].new_zeros(len(numbered), maps[0].shape[1], size, size)
    # A level without boxes is read too, so that every map always gets a gradient.
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        rows = torch.where(levels == level)[0]
        found = roi_align(features, numbered[rows].to(features.dtype), size, 1 / stride, samples, aligned)
        pooled = pooled.index_put((rows,), found.to(pooled.dtype))
    return pooled


def choose_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Return the level of each box, (R, 4) to (R,)."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    first = torch.tensor(strides[0] / CANONICAL_STRIDE).log2()
    found = torch.floor(torch.log2(sides / CANONICAL_SIZE + 1e-8)) - first
    return found.clamp(0, len(strides) - 1).long()
