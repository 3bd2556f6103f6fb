"""Sample masks at points, some uniform and some where a prediction is least certain.

Sources: Kirillov et al. 2020, PointRend (arXiv:1912.08193), section 3, as used by Cheng et al. 2022, Mask2Former
(arXiv:2112.01527), section 3.3.
"""

# N masks, P points of each, C points of all, H and W rows and columns

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Draw = Callable[..., Tensor]
"""Draws uniform numbers in [0, 1) with a given shape, as `torch.rand` does."""


def at_points(masks: Tensor, points: Tensor) -> Tensor:
    """Interpolate masks bilinearly at points, with 0 outside the masks.

    Args:
        masks: (N, H, W), floating point.
        points: x and y as fractions of the sides, (N, P, 2), or (1, P, 2) for all masks.

    Returns:
        (N, P).
    """
    if len(points) == 1:  # with masks as channels, interpolation weights are computed once
        return F.grid_sample(masks[None], 2 * points[:, :, None] - 1, align_corners=False)[0, :, :, 0]
    return F.grid_sample(masks[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def many_at_points(masks: Tensor, points: Tensor) -> Tensor:
    """Interpolate many masks at the same points, with the same result as `at_points`.

    All masks share the four pixels of a point and their weights, so the values of a pixel are added as a row. For 500
    masks of 56 x 56 pixels at 12,544 points on a CPU this is five times as fast as `grid_sample`, for ten masks slower.

    Args:
        masks: (N, H, W), floating point.
        points: x and y as fractions of the sides, (P, 2).

    Returns:
        (N, P), the points of a mask N values apart in memory.
    """
    height, width = masks.shape[1:]
    coordinates = torch.stack([points[:, 0] * width, points[:, 1] * height], dim=1) - 0.5
    corner = coordinates.floor()
    fraction = coordinates - corner
    (left, top) = corner.long().unbind(dim=1)
    x = torch.stack([left, left + 1], dim=1)[:, None]  # (P, 1, 2)
    y = torch.stack([top, top + 1], dim=1)[:, :, None]  # (P, 2, 1)
    across = torch.stack([1 - fraction[:, 0], fraction[:, 0]], dim=1)[:, None]
    down = torch.stack([1 - fraction[:, 1], fraction[:, 1]], dim=1)[:, :, None]
    weights = across * down * ((x >= 0) & (x < width) & (y >= 0) & (y < height))
    pixels = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    rows = masks.flatten(1).t().contiguous()  # (H W, N)
    return F.embedding_bag(pixels.flatten(1), rows, per_sample_weights=weights.flatten(1), mode="sum").t()


@torch.no_grad()
def uncertain_points(
    masks: Tensor, num_points: int, *, oversample: float, importance: float, draw: Draw = torch.rand
) -> tuple[Tensor, Tensor]:
    """Draw points, and choose for each mask the points where it is least certain, plus some uniform points.

    All masks choose from the same points. These are drawn once, and interpolated with the same weights.

    Args:
        masks: Scores, (N, H, W). Certainty is their distance from 0.
        num_points: Number of points per mask, P.
        oversample: Number of candidates for uncertain points, as a multiple of P.
        importance: Share of the P points that are uncertain points.
        draw: Draws the points.

    Returns:
        All points, (1, C, 2), and the indices of each mask's points, (N, P), in no particular order.
    """
    num_candidates = int(num_points * oversample)
    num_chosen = int(importance * num_points)
    # All masks share the candidates, so that drawing and sampling are done once for a batch.
    points = draw(1, num_candidates + num_points - num_chosen, 2, device=masks.device)
    certainty = at_points(masks, points[:, :num_candidates]).abs()
    chosen = certainty.topk(num_chosen, dim=1, largest=False, sorted=False).indices
    rest = torch.arange(num_candidates, points.shape[1], device=masks.device)
    return points, torch.cat([chosen, rest.expand(len(masks), -1)], dim=1)
