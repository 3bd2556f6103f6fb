"""A vision transformer as an encoder for images of any size, with windowed and global blocks and several outputs.

Sources: Li et al. 2022, ViTDet (arXiv:2203.16527), for windows with a few global blocks. The detection code of EVA-02
(arXiv:2303.11331) for positions: learned positions are resized bicubically without antialiasing, rotary positions of a
window and of the whole map are both rescaled to the grid of pre-training. There are no prefix tokens and no norm after
the last block.
"""

# B images, P prefix tokens, N patches, D width, h and w rows and columns of patches

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfm.models import ClipModel
from vfm.plugin import UserError
from vfm_eva.dense.relative import RelativeScores
from vfm_eva.dense.trunks import Trunk, unrotated_rows
from vfm_eva.dense.windows import Grid, check_window, from_windows, to_windows


@dataclass(frozen=True)
class Tokens:
    """Tokens between two blocks.

    Prefix tokens come first, then the patches row by row.

    Attributes:
        values: (B, P + N, D).
        num_prefix: Number of prefix tokens, P.
        grid: Rows and columns of the patches, (h, w).
    """

    values: Tensor
    num_prefix: int
    grid: Grid

    @property
    def maps(self) -> Tensor:
        """The patches as maps, (B, D, h, w)."""
        patches = self.values[:, self.num_prefix :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *self.grid)


class DenseEncoder(nn.Module):
    """Computes feature maps of an encoder's blocks for images of any size.

    Apart from its attention, a block processes tokens independently, so a windowed block is the same block with the
    windows as a batch. The model, any vision transformer of timm or open_clip, is not changed and stays usable by
    itself. Its parameters keep their names below `visual`.

    Args:
        model: A timm encoder, or a CLIP model whose image tower is used.
        layers: Blocks whose maps are returned. Negative numbers count from the end.
        window: Side of the windows in patches. None: every block attends to the whole map.
        global_blocks: Blocks that attend to the whole map despite windows. Negative numbers count from the end.
        prefix: Keep class and register tokens. Default: only without windows. With prefix tokens, windows must be as
            large as the map.

    Raises:
        UserError: If the model has no patch tokens, or there is no such block.
    """

    def __init__(
        self,
        model: ClipModel | nn.Module,
        *,
        layers: Sequence[int] = (-1,),
        window: int | None = None,
        global_blocks: Sequence[int] = (),
        prefix: bool | None = None,
    ) -> None:
        super().__init__()
        trunk = Trunk(model)
        self._trunk = [trunk]  # in a list, so that its modules are registered once
        self.visual: nn.Module = trunk.visual
        self.width = trunk.width
        self.patch_size = trunk.patch_size
        self.depth = len(trunk.blocks)
        self.layers = [self._block("layers", layer) for layer in layers]
        self.window = window
        self.global_blocks = frozenset(self._block("global_blocks", block) for block in global_blocks)
        self.prefix = window is None if prefix is None else prefix
        # Rotary positions of grids seen so far, since images of a few sizes alternate.
        self._rotary: dict[tuple[Grid, torch.device], Tensor] = {}

    @property
    def trunk(self) -> Trunk:
        """The parts of the model."""
        return self._trunk[0]

    def forward(self, images: Tensor, relative: Sequence[RelativeScores] | None = None) -> list[Tensor]:
        """Compute the maps of `layers` in their order, (B, D, h, w) each, without the final norm.

        Args:
            images: Normalised images, (B, 3, H, W).
            relative: Relative positions of each block. `RelativePositions` do not support prefix tokens.

        Raises:
            UserError: If a side is not a multiple of the patch size, or windows do not tile the map.
        """
        tokens = self.embed(images)
        maps = {}
        num_done = 0
        for layer in sorted(set(self.layers)):
            tokens = self.run(tokens, range(num_done, layer + 1), relative=relative)
            maps[layer] = tokens.maps
            num_done = layer + 1
        return [maps[layer] for layer in self.layers]

    def embed(self, images: Tensor) -> Tokens:
        """Compute the tokens before the first block."""
        if any(side % self.patch_size for side in images.shape[-2:]):
            height, width = images.shape[-2:]
            raise UserError(
                f"{self.trunk.name}: expected sides that are multiples of the patch size {self.patch_size}, got"
                f" {height} x {width} pixels"
            )
        patches = self.trunk.patches(images)
        grid = (patches.shape[2], patches.shape[3])
        if self.window is not None:
            check_window(grid, self.window, self.patch_size)
        values = patches.flatten(2).transpose(1, 2)
        positions = self.trunk.positions(grid)
        if positions is not None:
            values = values + positions
        prefix = self.trunk.prefix() if self.prefix else values[:1, :0]
        values = torch.cat([prefix.to(values.dtype).expand(values.shape[0], -1, -1), values], dim=1)
        return Tokens(self.trunk.before_blocks(values), prefix.shape[1], grid)

    def run(
        self,
        tokens: Tokens,
        blocks: Sequence[int],
        visible: Tensor | None = None,
        copies: Mapping[int, nn.Module] | None = None,
        relative: Sequence[RelativeScores] | None = None,
    ) -> Tokens:
        """Apply some blocks in their order.

        Args:
            tokens: The input of the first block. Further tokens may precede the prefix tokens.
            blocks: Block numbers, from 0.
            visible: Attention mask for all blocks, as in `Trunk.apply_block`. Only for blocks without windows.
            copies: Copies of blocks with separate weights, by number, to apply in place of the originals.
            relative: Relative positions of each block. `RelativePositions` do not support prefix tokens.

        Raises:
            UserError: If there are prefix tokens and windows smaller than the map.
        """
        values = tokens.values
        cut = False
        for number in blocks:
            windowed = self._has_windows(number, tokens)
            if windowed != cut:  # cut or join the map only where the kind of block changes
                assert self.window is not None
                convert = to_windows if windowed else from_windows
                values = convert(values, tokens.grid, self.window)
                cut = windowed
            grid = (self.window, self.window) if windowed and self.window else tokens.grid
            rope = self._rope(grid, tokens.num_prefix, values)
            positions = (relative[number], grid) if relative else None
            arguments = (number, values, rope, visible, (copies or {}).get(number), positions)
            if self.training and self._checkpointing:
                # timm's own checkpointing is in the encoder's forward pass, which is not called here.
                values = checkpoint(self.trunk.apply_block, *arguments, use_reentrant=False)
            else:
                values = self.trunk.apply_block(*arguments)
        if cut:
            assert self.window is not None
            values = from_windows(values, tokens.grid, self.window)
        return replace(tokens, values=values)

    def is_global(self, number: int) -> bool:
        """Check whether a block attends to the whole map, regardless of its size."""
        return self.window is None or number in self.global_blocks

    def _has_windows(self, number: int, tokens: Tokens) -> bool:
        if self.is_global(number) or tokens.grid == (self.window, self.window):
            return False
        if tokens.num_prefix:
            raise UserError(
                f"window: prefix tokens belong to no window; expected windows as large as the map of {tokens.grid[0]} x"
                f" {tokens.grid[1]} patches, or prefix: false"
            )
        return True

    def _rope(self, grid: Grid, num_prefix: int, values: Tensor) -> Tensor | None:
        """Look up or compute the rotary positions of a grid, with rows for the tokens before the patches."""
        # Under the tracer of ONNX sides are tensors. Numbers find the positions of this size, which become constants.
        grid = (int(grid[0]), int(grid[1]))
        key = (grid, values.device)
        rope = self._rotary.get(key)
        if rope is None:
            rope = self.trunk.rotary(grid)
            if rope is None:
                return None
            # Learned or augmented positions change from call to call.
            if not rope.requires_grad and not getattr(self.visual.rope, "aug_active", False):
                self._rotary[key] = rope
        if not num_prefix:
            return rope
        return unrotated_rows(rope, num_prefix)

    @property
    def _checkpointing(self) -> bool:
        owner = getattr(self.visual, "transformer", self.visual)
        return bool(getattr(owner, "grad_checkpointing", False))

    def _block(self, field: str, number: int) -> int:
        if not -self.depth <= number < self.depth:
            raise UserError(f"{field}: {self.trunk.name} has {self.depth} blocks, got {number}")
        return number % self.depth
