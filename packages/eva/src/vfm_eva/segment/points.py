"""Masks at points: uniform ones, and those where a prediction is least certain.

Source: Kirillov et al. 2020, PointRend (arXiv:1912.08193), section 3; as used by Cheng et al. 2022, Mask2Former
(arXiv:2112.01527), section 3.3.
"""

# N masks, P points of each, C points of all, H and W rows and columns

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
) -> tuple[Tensor, Tensor]:
    """Return one sample of points, and those that each mask takes: mostly where it is least certain, the rest uniform.

    Masks choose from the same points, which are therefore drawn once, and interpolated with the same weights.

    Args:
        masks: scores, (N, H, W); certainty is their distance from 0.
        num_points: P.
        oversample: number of points from which the uncertain ones are chosen, in P.
        importance: share of the P points that are uncertain ones.
        draw: draws the points.

    Returns:
        Points, (1, C, 2), and for each mask the numbers of its own, (N, P), in no order.
    """
    num_candidates, num_chosen = int(num_points * oversample), int(importance * num_points)
    points = draw(1, num_candidates + num_points - num_chosen, 2, device=masks.device)
    certainty = at_points(masks, points[:, :num_candidates]).abs()
    chosen = certainty.topk(num_chosen, dim=1, largest=False, sorted=False).indices
    rest = torch.arange(num_candidates, points.shape[1], device=masks.device)
    return points, torch.cat([chosen, rest.expand(len(masks), -1)], dim=1)
