"""Relative positions of EVA-01's detectors, separate for rows and columns, added to attention scores.

A query q at (y, x) scores a key k at (v, u) with q . k / sqrt(d) + q . (rows[y - v] + columns[x - u]).

Sources: Li et al. 2022, MViTv2 (arXiv:2112.01526), section 4.1, and ViTDet (arXiv:2203.16527).
"""

# B images or windows, H heads, N patches, D width, d width of a head, h and w rows and columns of patches

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.plugin import UserError
from vfm_eva.dense.windows import Grid

RelativeScores: TypeAlias = Callable[[nn.Module, Tensor, Grid], Tensor]
"""Computes the term added to attention scores, from a block, its input (B, N, D) and the grid of the patches in it."""


class RelativePositions(nn.Module):
    """The relative positions of a block, initialized with zeros.

    Args:
        block: block of a timm encoder.
        side: side of the square of patches within which the block attends.

    Raises:
        UserError: if the block is of another kind.
    """

    def __init__(self, block: nn.Module, side: int) -> None:
        super().__init__()
        if not isinstance(block, (EvaBlock, Block)):
            raise UserError(
                "windows.relative: expected blocks with a norm before their attention, as EVA's, got"
                f" {type(block).__name__}"
            )
        attention: Any = block.attn
        self.rows = nn.Parameter(torch.zeros(2 * side - 1, attention.head_dim))
        self.columns = nn.Parameter(torch.zeros(2 * side - 1, attention.head_dim))

    def forward(self, block: nn.Module, tokens: Tensor, grid: Grid) -> Tensor:
        """Compute the term added to the block's attention scores, (B, H, N, N), from its input (B, N, D)."""
        queries = _queries(block, tokens)
        queries = queries.reshape(*queries.shape[:2], *grid, -1)  # (B, H, h, w, d)
        rows = torch.einsum("bnhwd,hkd->bnhwk", queries, _of_pairs(self.rows, grid[0]))  # (B, H, h, w, h)
        columns = torch.einsum("bnhwd,wkd->bnhwk", queries, _of_pairs(self.columns, grid[1]))  # (B, H, h, w, w)
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


def _queries(block: Any, tokens: Tensor) -> Tensor:
    """Compute the queries of a block, (B, H, N, d), which its attention computes too but does not return."""
    attention = block.attn
    normed = block.norm1(tokens)
    if attention.qkv is None:
        flat = attention.q_proj(normed)
    else:
        width = attention.qkv.weight.shape[0] // 3
        bias = attention.qkv.bias
        if bias is None:
            bias = getattr(attention, "q_bias", None)
        if bias is not None:
            bias = bias[:width]
        flat = F.linear(normed, attention.qkv.weight[:width], bias)
    queries: Tensor = attention.q_norm(flat.unflatten(2, (attention.num_heads, -1)).transpose(1, 2))
    return queries


def _of_pairs(table: Tensor, side: int) -> Tensor:
    """Look up the vector for each pair of query row and key row, (side, side, d), interpolated for other sides."""
    length = 2 * side - 1
    if len(table) != length:
        table = F.interpolate(table.T[None].float(), size=length, mode="linear")[0].T.to(table.dtype)
    rows = torch.arange(side, device=table.device)
    return table[rows[:, None] - rows + side - 1]
