"""Two ways to hide patches from a timm vision transformer, by its own seams; and which transformers allow it."""

# B batch, N patches, V visible patches, P prefix tokens, D width

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from torch import Tensor, nn

from vfm.config import UserError
from vfm.models.patch_features import grid_size
from vfm_kernels import gather_tokens, mask_tokens


@contextmanager
def masked(student: Any, mask_token: Tensor, bool_mask: Tensor) -> Iterator[None]:
    """Lets the mask token take the place of masked patch embeddings, before positions are added (EVA, BEiT)."""

    def replace(module: nn.Module, inputs: Any, patch_tokens: Tensor) -> Tensor:
        return mask_tokens(patch_tokens, mask_token, bool_mask)

    handle = student.patch_embed.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def visible_only(student: Any, index: Tensor) -> Iterator[None]:
    """Lets the patches (B, V) that `index` names alone go on, after positions are added (MAE).

    They leave where timm's patch dropout would take them out, so rotary positions follow.
    """
    before = student.patch_drop
    student.patch_drop = _Keep(index, student.num_prefix_tokens, with_index=isinstance(student, Eva))
    try:
        yield
    finally:
        student.patch_drop = before


class _Keep(nn.Module):
    """Stands in for timm's patch dropout; an `Eva` wants to know which patches stayed."""

    def __init__(self, index: Tensor, num_prefix_tokens: int, *, with_index: bool) -> None:
        super().__init__()
        self.index, self.num_prefix_tokens, self.with_index = index, num_prefix_tokens, with_index

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, P + N, D) to (B, P + V, D)."""
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        kept = torch.cat([prefix, gather_tokens(patches, self.index)], dim=1)
        return (kept, self.index) if self.with_index else kept


def student_grid(student: nn.Module, num_masked: int | None = None) -> tuple[int, int]:
    """Rows and columns of a student's patches, once it is known that they can be masked.

    Raises:
        UserError: it is no vision transformer, its patches overlap, are dropped or do not fill the image, or the mask
            leaves nothing.
    """
    rows, columns = grid_size(student)
    name, embed = type(student).__name__, student.patch_embed
    if not isinstance(embed, PatchEmbed):  # a convolutional stem sees beyond the patch
        raise UserError(f"{name}: its patches overlap, so what is masked would show; a plain patch embedding is wanted")
    if not isinstance(getattr(student, "patch_drop", None), nn.Identity | None):
        raise UserError(f"{name}: patch_drop_rate drops patches that are to be predicted; leave it at 0")
    if any(side % patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)):
        raise UserError(
            f"{name}: {embed.img_size[0]} pixels are not a multiple of its patch size {embed.patch_size[0]}"
        )
    if min(rows, columns) < 2:
        raise UserError(
            f"{name}: {embed.img_size[0]} pixels hold {rows} x {columns} patches of {embed.patch_size[0]} pixels;"
            " masks need at least 2 x 2"
        )
    if num_masked is not None and not 0 < num_masked < rows * columns:
        raise UserError(
            f"mask_ratio masks {num_masked} of the student's {rows} x {columns} patches; some must be masked, some seen"
        )
    return rows, columns
