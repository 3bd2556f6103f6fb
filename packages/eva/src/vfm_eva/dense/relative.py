"""Relative positions of EVA-01's detectors, separate for rows and columns, added to attention scores.

A query q at (y, x) scores a key k at (v, u) with q . k / sqrt(d) + q . (rows[y - v] + columns[x - u]).

Sources: Li et al. 2022, MViTv2 (arXiv:2112.01526), section 4.1, and ViTDet (arXiv:2203.16527). The resizing of BEiT
(Bao et al. 2022, arXiv:2106.08254) follows EVA's public code.
"""

# B images or windows, H heads, N patches, D width, d width of a head, h and w rows and columns of patches, L entries of
# a table, one for each difference of two rows or columns

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy  # imports `scipy.interpolate` when it is used
import torch
from numpy.typing import NDArray
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.plugin import UserError
from vfm_eva.dense.windows import Grid

TableResizing = Literal["linear", "beit"]

BEIT_RATIO = 1.0903078
"""Ratio of the distances between neighbouring entries of a table in BEiT's resizing, as EVA fixes it for all sizes."""

RelativeScores: TypeAlias = Callable[[nn.Module, Tensor, Grid], Tensor]
"""Computes the term added to attention scores, from a block, its input (B, N, D) and the grid of the patches in it."""


class RelativePositions(nn.Module):
    """The relative positions of a block, initialized with zeros.

    Args:
        block: Block of a timm encoder.
        side: Side of the square of patches that the tables are for.
        resizing: How the tables are resized if the block attends within another square.

    Raises:
        UserError: If the block is of another kind.
    """

    def __init__(self, block: nn.Module, side: int, resizing: TableResizing = "linear") -> None:
        super().__init__()
        if not isinstance(block, (EvaBlock, Block)):
            raise UserError(
                "windows.relative: expected blocks with a norm before their attention, as EVA's, got"
                f" {type(block).__name__}"
            )
        attention: Any = block.attn
        self.rows = nn.Parameter(torch.zeros(2 * side - 1, attention.head_dim))
        self.columns = nn.Parameter(torch.zeros(2 * side - 1, attention.head_dim))
        self.resizing = resizing

    def forward(self, block: nn.Module, tokens: Tensor, grid: Grid) -> Tensor:
        """Compute the term added to a block's attention scores.

        Args:
            block: The block.
            tokens: Input of the block, (B, N, D).
            grid: Rows and columns of the patches.

        Returns:
            (B, H, N, N).
        """
        queries = _queries(block, tokens)
        queries = queries.reshape(*queries.shape[:2], *grid, -1)  # (B, H, h, w, d)
        row_vectors = _of_pairs(self.rows, grid[0], self.resizing)
        column_vectors = _of_pairs(self.columns, grid[1], self.resizing)
        rows = torch.einsum("bnhwd,hkd->bnhwk", queries, row_vectors)  # (B, H, h, w, h)
        columns = torch.einsum("bnhwd,wkd->bnhwk", queries, column_vectors)  # (B, H, h, w, w)
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


def _queries(block: Any, tokens: Tensor) -> Tensor:
    """Compute the queries of a block, (B, H, N, d).

    Its attention computes them too, but does not return them.
    """
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


def _of_pairs(table: Tensor, side: int, resizing: TableResizing) -> Tensor:
    """Look up the vector for each pair of query row and key row, (side, side, d), in a table resized to the side."""
    length = 2 * side - 1
    if len(table) != length:
        table = _resized(table, length, resizing)
    rows = torch.arange(side, device=table.device)
    return table[rows[:, None] - rows + side - 1]


def _resized(table: Tensor, length: int, resizing: TableResizing) -> Tensor:
    """Resize a table (L, d) to (length, d)."""
    if resizing == "linear":
        return F.interpolate(table.T[None].float(), size=length, mode="linear")[0].T.to(table.dtype)
    weights = torch.tensor(beit_weights(len(table), length), device=table.device, dtype=torch.float32)
    return (weights @ table.float()).to(table.dtype)


@lru_cache(maxsize=4)
def beit_weights(length: int, new_length: int) -> NDArray[np.float64]:
    """Compute the weights of a table's entries in each entry of the resized table, (new_length, L).

    BEiT places the entries at distances that grow as a geometric series, so that near ones are resampled finely. A
    cubic spline through them is read at every whole distance.

    Args:
        length: Entries of the table, L, an odd number of at least 3.
        new_length: Entries of the resized table, an odd number.
    """
    distances = np.cumsum(BEIT_RATIO ** np.arange(length // 2))
    positions = np.concatenate([-distances[::-1], [0.0], distances])
    reach = new_length // 2
    spline = scipy.interpolate.CubicSpline(positions, np.eye(length))
    return np.asarray(spline(np.arange(-reach, reach + 1.0)), dtype=np.float64)
