"""Interpolate learned positions in time, and add angles of time to spatial rotary positions."""

# F times, N patches, D width

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BASE = 10_000.0  # of the frequencies, as in the Transformer


def interpolate_positions(positions: Tensor, times: int, grid: tuple[int, int]) -> Tensor:
    """Interpolate positions of a square grid trilinearly to other times and another grid.

    EVA's video code interpolates from 8 to 16 frames in (time, row, column).

    Args:
        positions: (F', N', D).
        times: Number F of times of the result.
        grid: Rows and columns of the result.

    Returns:
        (F, N, D).
    """
    side = round(positions.shape[1] ** 0.5)
    if (len(positions), (side, side)) == (times, tuple(grid)):
        return positions
    volume = positions.view(len(positions), side, side, -1).permute(3, 0, 1, 2)[None]  # (1, D, F', rows, columns)
    volume = volume.float()
    resized = F.interpolate(volume, size=(times, *grid), mode="trilinear", align_corners=False)
    return resized[0].permute(1, 2, 3, 0).flatten(1, 2).to(positions.dtype)


def rotated_in_time(rope: Tensor, times: int) -> Tensor:
    """Extend rotary positions to all frames: at time f each plane is rotated further by f times its frequency.

    Rotations add up, so a query in frame f and a key in frame g differ by their spatial angles and the angle of f - g.

    Args:
        rope: timm's table, sines then cosines of each channel, (..., N, 2 D).
        times: F.

    Returns:
        (..., F N, 2 D), the frames one after another.
    """
    sin, cos = rope.chunk(2, dim=-1)  # (..., N, D) each
    planes = sin.shape[-1] // 2  # two channels share an angle
    steps = torch.arange(planes, device=rope.device, dtype=torch.float32)
    frequencies = BASE ** (-steps / planes)
    angles = torch.arange(times, device=rope.device)[:, None] * frequencies.repeat_interleave(2)  # (F, D)
    frames = []
    for angle in angles:
        time_sin, time_cos = angle.sin().to(rope.dtype), angle.cos().to(rope.dtype)
        frames.append(torch.cat([sin * time_cos + cos * time_sin, cos * time_cos - sin * time_sin], dim=-1))
    return torch.cat(frames, dim=-2)
