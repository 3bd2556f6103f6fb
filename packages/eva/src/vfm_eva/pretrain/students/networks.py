"""Students without patch tokens: networks of timm whose last feature map takes the place of the patches."""

# B batch, N patches, D width of the feature map, E width of the pooled feature

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from vfm.models import vision_preprocess
from vfm.plugin import UserError
from vfm_eva.targets.patch_target import PatchTarget, resample_grid

__all__ = ["freeze_unused", "map_tokens", "target_grid"]


def map_tokens(
    student: Any, pixels: Tensor, grid: tuple[int, int], *, with_image: bool
) -> tuple[Tensor | None, Tensor]:
    """Compute a network's feature map on a grid, and its pooled feature.

    Args:
        student: Any network of timm.
        pixels: Normalised images, (B, 3, S, S).
        grid: Rows and columns of the result.
        with_image: Whether the pooled feature is taught.

    Returns:
        The pooled feature (B, E), if it is taught, and the map (B, N, D).
    """
    features = student.forward_features(pixels)
    image = student.forward_head(features, pre_logits=True) if with_image else None
    planes = _planes(student, features)
    return image, resample_grid(planes.flatten(2).transpose(1, 2), (planes.shape[2], planes.shape[3]), grid)


def target_grid(target: PatchTarget, student: nn.Module) -> tuple[int, int]:
    """Find the grid to which a network's feature map is resized: the patches of its first teacher.

    Raises:
        UserError: If the target has no grid.
    """
    if target.grid is None:
        raise UserError(f"{type(student).__name__}: has no patches, so the target must be a teacher's")
    return target.grid


def freeze_unused(student: nn.Module, *, with_image: bool) -> None:
    """Freeze the weights that no loss reaches, such as a norm after pooling, for which DDP would wait.

    Args:
        student: A network of timm.
        with_image: Its pooled feature is taught too.

    Raises:
        UserError: If its features are no map.
    """
    traced: Any = deepcopy(student).to("meta").eval()
    traced.requires_grad_(True)
    side = vision_preprocess(student).image_size
    features = traced.forward_features(torch.zeros(1, 3, side, side, device="meta"))
    loss = _planes(traced, features).sum()
    if with_image:
        loss = loss + traced.forward_head(features, pre_logits=True).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    for weight, reached in zip(student.parameters(), traced.parameters(), strict=True):
        if reached.grad is None:
            weight.requires_grad_(False)


def _planes(student: Any, features: Any) -> Tensor:
    """Arrange the result of timm's `forward_features` as (B, D, rows, columns).

    Raises:
        UserError: If it is no feature map of the network's width.
    """
    name = type(student).__name__
    if not isinstance(features, Tensor) or features.ndim != 4:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"{name}: expected a feature map of rows and columns, got {got}, so it cannot be a student")
    planes = features.permute(0, 3, 1, 2) if getattr(student, "output_fmt", "NCHW") == "NHWC" else features
    if planes.shape[1] != student.num_features:
        raise UserError(f"{name}: expected a feature map of {student.num_features} channels, got {planes.shape[1]}")
    return planes
