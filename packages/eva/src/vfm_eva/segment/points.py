"""Masks at points: uniform ones, and those where a prediction is least certain.

Source: Kirillov et al. 2020, PointRend (arXiv:1912.08193), section 3; as used by Cheng et al. 2022, Mask2Former
(arXiv:2112.01527), section 3.3.
"""

# N masks, P points, H and W rows and columns

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Draw = Callable[..., Tensor]
"""Returns uniform numbers in [0, 1) of a shape, as `torch.rand` does."""


def at_points(masks: Tensor, points: Tensor) -> Tensor:
    """Return the values of masks at points, bilinear, 0 outside.

    Args:
        masks: (N, H, W), floating point.
        points: x and y as fractions of the sides, (N, P, 2), or (1, P, 2) for all masks.

    Returns:
        (N, P).
    """
    if len(points) == 1:  # masks as channels share the weights of the interpolation
        return F.grid_sample(masks[None], 2 * points[:, :, None] - 1, align_corners=False)[0, :, :, 0]
    return F.grid_sample(masks[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def uncertain_points(
    masks: Tensor, num_points: int, *, oversample: float = 3.0, importance: float = 0.75, draw: Draw = torch.rand
) -> Tensor:
    """Return points for each mask: a part of them the least certain ones of a larger uniform sample, the rest uniform.

    Args:
        masks: scores, (N, H, W); certainty is their distance from 0.
        num_points: P.
        oversample: size of the larger sample, in P.
        importance: part of the P points that is chosen from it.
        draw: draws the points.

    Returns:
        (N, P, 2).
    """
    candidates = draw(len(masks), int(num_points * oversample), 2, device=masks.device)
    num_chosen = int(importance * num_points)
    chosen = at_points(masks, candidates).abs().topk(num_chosen, dim=1, largest=False).indices
    points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    if num_chosen == num_points:
        return points
    rest = draw(len(masks), num_points - num_chosen, 2, device=masks.device)
    return torch.cat([points, rest], dim=1)
