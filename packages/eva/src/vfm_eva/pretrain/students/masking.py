"""Two ways to hide patches from a timm vision transformer without changing its code, and checks of the model."""

# B batch, N patches, V visible patches, P prefix tokens, D width

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from torch import Tensor, nn

from vfm.models import grid_size, has_patch_tokens
from vfm.plugin import UserError
from vfm_kernels import gather_tokens, mask_tokens

__all__ = ["check_class_token", "masked", "student_grid", "visible_only"]


@contextmanager
def masked(student: Any, mask_token: Tensor, bool_mask: Tensor) -> Iterator[None]:
    """Replace masked patch embeddings by the mask token within the context.

    They are replaced before positions are added (EVA, BEiT).

    Args:
        student: A timm vision transformer.
        mask_token: (D,).
        bool_mask: (B, N), True = masked.
    """

    def replace(module: nn.Module, inputs: Any, patch_tokens: Tensor) -> Tensor:
        if patch_tokens.ndim == 4:  # students for images of any size keep rows and columns: (B, rows, columns, D)
            return mask_tokens(patch_tokens.flatten(1, 2), mask_token, bool_mask).view_as(patch_tokens)
        return mask_tokens(patch_tokens, mask_token, bool_mask)

    handle = student.patch_embed.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def visible_only(student: Any, index: Tensor) -> Iterator[None]:
    """Keep only the patches at `index`, (B, V), within the context, after positions are added (MAE).

    They are selected where timm drops patches, so that rotary positions are selected too.
    """
    before = student.patch_drop
    student.patch_drop = _Keep(index, student.num_prefix_tokens, with_index=isinstance(student, Eva))
    try:
        yield
    finally:
        student.patch_drop = before


class _Keep(nn.Module):
    """Replaces timm's patch dropout. In an `Eva` this layer also returns the indices of the kept patches."""

    def __init__(self, index: Tensor, num_prefix_tokens: int, *, with_index: bool) -> None:
        super().__init__()
        self.index = index
        self.num_prefix_tokens = num_prefix_tokens
        self.with_index = with_index

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Select the prefix and the visible patches, (B, P + N, D) to (B, P + V, D)."""
        prefix = tokens[:, : self.num_prefix_tokens]
        patches = tokens[:, self.num_prefix_tokens :]
        visible = torch.cat([prefix, gather_tokens(patches, self.index)], dim=1)
        if not self.with_index:
            return visible
        return (visible, self.index)


def student_grid(
    student: nn.Module, num_masked: int | None = None, *, visible_only: bool = False, is_masked: bool = True
) -> tuple[int, int]:
    """Check that a student's patches can be masked, and return its rows and columns of patches.

    Args:
        student: A timm vision transformer.
        num_masked: Number of patches that a mask hides. None: not checked.
        visible_only: The student must also be able to encode a subset of its patches (`encode: visible`).
        is_masked: False: its patches are not masked, and may overlap.

    Raises:
        UserError: If it is no vision transformer for square colour images, its patches overlap, are dropped or do not
            fill the image, the mask hides none or all of them, or it cannot encode a subset of its patches.
    """
    name = type(student).__name__
    if is_masked and not has_patch_tokens(student):
        raise UserError(f"{name} has no patch tokens that could be masked; set mask: {{ratio: 0}}")
    rows, columns = grid_size(student)
    embed = student.patch_embed
    if not isinstance(embed, PatchEmbed) and not is_masked:
        return rows, columns
    if not isinstance(embed, PatchEmbed):  # a convolutional stem sees beyond the patch
        raise UserError(f"{name}: expected a plain patch embedding; with overlapping patches, masked ones stay visible")
    if embed.img_size[0] != embed.img_size[1]:
        raise UserError(f"{name}: img_size must be square, got {embed.img_size[0]} x {embed.img_size[1]} pixels")
    if embed.proj.in_channels != 3:
        raise UserError(f"{name}: in_chans must be 3, the channels of the images; got {embed.proj.in_channels}")
    if not isinstance(getattr(student, "patch_drop", None), nn.Identity | None):
        raise UserError(f"{name}: patch_drop_rate must be 0: it would drop patches that are to be predicted")
    if visible_only and not hasattr(student, "patch_drop"):
        raise UserError(
            f"{name}: its relative positions need all patches, so it cannot encode the visible ones alone;"
            " set encode: all"
        )
    if any(side % patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)):
        raise UserError(
            f"{name}: the image size must be a multiple of the patch size {embed.patch_size[0]},"
            f" got {embed.img_size[0]} pixels"
        )
    if min(rows, columns) < 2 and is_masked:
        raise UserError(
            f"{name}: masks need at least 2 x 2 patches, got {rows} x {columns} of {embed.patch_size[0]} pixels"
            f" ({embed.img_size[0]} pixels)"
        )
    if num_masked is not None and not 0 < num_masked < rows * columns:
        raise UserError(
            f"mask.ratio masks {num_masked} of the student's {rows} x {columns} patches; expected at least one masked"
            " and one visible patch"
        )
    return rows, columns


def check_class_token(student: nn.Module) -> None:
    """Check that a student has a class token that a loss can teach.

    Raises:
        UserError: If it has none.
    """
    if getattr(student, "cls_token", None) is None:
        raise UserError(f"{type(student).__name__}: has no class token to teach; set class_weight: 0")
