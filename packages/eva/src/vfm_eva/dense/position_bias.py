"""Relative positions as BEiT has them: for each block, head and offset between two patches a number of its own.

Sources: Bao et al. 2022, BEiT (arXiv:2106.08254); the index is timm's. EVA-01's larger segmenters have them.
"""

# H heads, N patches and the class token before them

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import gen_relative_position_index
from torch import Tensor, nn

from vfm_eva.dense.relative import RelativeScores
from vfm_eva.dense.windows import Grid


class PositionBias(nn.Module):
    """The relative positions of all blocks, zero at first.

    Args:
        grid: rows and columns of patches; there is no other one.
        blocks: of a timm encoder with a class token.
    """

    index: Tensor

    def __init__(self, grid: Grid, blocks: Sequence[Any]) -> None:
        super().__init__()
        rows, columns = grid
        count = (2 * rows - 1) * (2 * columns - 1) + 3  # from, to and of the class token
        self.tables = nn.ParameterList(torch.zeros(count, block.attn.num_heads) for block in blocks)
        # One index for all blocks: in 40 blocks of 3,137 tokens an index each would take 3 GB.
        self.register_buffer("index", gen_relative_position_index(grid, class_token=True), persistent=False)

    @property
    def of_blocks(self) -> list[RelativeScores]:
        """What each block takes."""
        return [partial(self._of_block, number) for number in range(len(self.tables))]

    def _of_block(self, number: int, block: nn.Module, tokens: Tensor, grid: Grid) -> Tensor:
        """Return what is added to the scores of a block's attention, (1, H, N, N)."""
        table: Tensor = self.tables[number]
        return table[self.index].permute(2, 0, 1)[None]
