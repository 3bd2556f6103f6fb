"""Relative position bias as in BEiT: a learned number for each block, head and offset between two patches.

It is added to the scores of attention. Sources: Bao et al. 2022, BEiT (arXiv:2106.08254); the index is timm's. EVA-01's
larger segmenters have one.
"""

# H heads, N tokens: the class token and the patches

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
    """The relative position bias of all blocks, which starts at zero.

    Args:
        grid: rows and columns of the patches; images of another size are not possible.
        blocks: of a timm encoder with a class token.
    """

    index: Tensor

    def __init__(self, grid: Grid, blocks: Sequence[Any]) -> None:
        super().__init__()
        rows, columns = grid
        count = (2 * rows - 1) * (2 * columns - 1) + 3  # and from, to and within the class token
        self.tables = nn.ParameterList(torch.zeros(count, block.attn.num_heads) for block in blocks)
        # One index for all blocks: in 40 blocks of 3,137 tokens an index each would take 3 GB.
        self.register_buffer("index", gen_relative_position_index(grid, class_token=True), persistent=False)

    @property
    def of_blocks(self) -> list[RelativeScores]:
        """Return, for each block, the function that computes its bias (`DenseEncoder.run` calls it)."""
        return [partial(self._of_block, number) for number in range(len(self.tables))]

    def _of_block(self, number: int, block: nn.Module, tokens: Tensor, grid: Grid) -> Tensor:
        """Return the bias of a block, (1, H, N, N); the arguments after `number` are those of `RelativeScores`."""
        table: Tensor = self.tables[number]
        return table[self.index].permute(2, 0, 1)[None]
