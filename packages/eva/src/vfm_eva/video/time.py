"""Positions in time: interpolation of learned ones, and angles of time added to the rotary ones of space."""

# F times, N patches, D width

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BASE = 10_000.0


def interpolate_positions(positions: Tensor, times: int, grid: tuple[int, int]) -> Tensor:
    """Return positions (F', N', D) of a square grid for other times and another grid, trilinearly, (F, N, D).

    Source: EVA's video code, which interpolates from 8 to 16 frames in (time, row, column).
    """
    side = round(positions.shape[1] ** 0.5)
    if (len(positions), (side, side)) == (times, tuple(grid)):
        return positions
    volume = (
        positions.view(len(positions), side, side, -1).permute(3, 0, 1, 2)[None].float()
    )  # (1, D, F', rows, columns)
    resized = F.interpolate(volume, size=(times, *grid), mode="trilinear", align_corners=False)
    return resized[0].permute(1, 2, 3, 0).flatten(1, 2).to(positions.dtype)


def rotated_in_time(rope: Tensor, times: int) -> Tensor:
    """Return the rotary positions of all frames: at time f each plane is turned further by f times its frequency.

    Rotations add up, so a query and a key of frames f and g differ by the angles of space and of f - g.

    Args:
        rope: timm's table, sines then cosines of each channel, (..., N, 2 D).
        times: F.

    Returns:
        (..., F N, 2 D), the frames one after another.
    """
    sin, cos = rope.chunk(2, dim=-1)
    planes = sin.shape[-1] // 2  # channels come in pairs of one angle
    steps = torch.arange(planes, device=rope.device, dtype=torch.float32)
    frequencies = BASE ** (-steps / planes)
    angles = torch.arange(times, device=rope.device)[:, None] * frequencies.repeat_interleave(2)  # (F, D)
    turned = []
    for angle in angles:
        turn_sin, turn_cos = angle.sin().to(rope.dtype), angle.cos().to(rope.dtype)
        turned.append(torch.cat([sin * turn_cos + cos * turn_sin, cos * turn_cos - sin * turn_sin], dim=-1))
    return torch.cat(turned, dim=-2)
