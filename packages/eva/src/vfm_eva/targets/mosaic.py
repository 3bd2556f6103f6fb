"""Mosaics for teachers that are larger than the student: several images share a single image of the teacher.

Source: Heinrich et al. 2024, RADIOv2.5 (arXiv:2412.07679), for mosaics in place of enlarged or padded images.
"""

# B small images, M mosaics, k tiles a side, t side of a tile, N patches, T width of the features

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cut_mosaics", "join_mosaics", "tiles_per_side"]


def tiles_per_side(size: int, teacher_size: int) -> int:
    """Count the images of `size` pixels that fit into a side of the teacher's image, at least one."""
    return max(1, teacher_size // size)


def join_mosaics(images: Tensor, side: int) -> Tensor:
    """Lay images (B, 3, t, t) out row by row as mosaics (M, 3, k t, k t). The last one is filled up with zeros.

    Args:
        images: Square images.
        side: k, tiles a side.
    """
    if side == 1:
        return images
    missing = -len(images) % side**2
    filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
    rows = filled.reshape(-1, side, side, *filled.shape[1:])  # (M, k, k, 3, t, t)
    return rows.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def cut_mosaics(features: Tensor, grid: tuple[int, int], side: int, num_images: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut features of mosaics, (M, N, T), into the features of each image, (B, N / k^2, T), with their grid.

    Args:
        features: Patch features, row by row.
        grid: Rows and columns of a mosaic's patches, multiples of k.
        side: k, tiles a side.
        num_images: B. Tiles after the last image are dropped.
    """
    if side == 1:
        return features, grid
    rows, columns = grid[0] // side, grid[1] // side
    tiles = features.reshape(len(features), side, rows, side, columns, -1).transpose(
        2, 3
    )  # (M, k, k, rows, columns, T)
    return tiles.flatten(3, 4).flatten(0, 2)[:num_images], (rows, columns)
