"""Which patches the student does not see: EVA's block-wise masks, the same with an exact count, and uniform ones.

Each mask is a pure function of its own integer seed, so a sample keeps its mask whatever batch, worker or rank it falls
in. All three functions share one signature: `(seeds, grid, num_masked) -> bool_mask`, True = masked, on the CPU.

Source: the block-wise algorithm of BEiT (Bao et al. 2021, arXiv:2106.08254, Algorithm 1) with EVA's parameters
(Fang et al. 2022, arXiv:2211.07636): 105 of 16 x 16 patches, blocks of at least 16, ten attempts per block.
"""

# B batch, N = rows * columns patches, row by row. While it is drawn, a mask is a Python integer whose bit i is patch i:
# union, overlap and count are then single operations, several times faster than on small arrays.

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Seeds = Sequence[int] | np.ndarray | Tensor
Grid = tuple[int, int]

ATTEMPTS_PER_BLOCK = 10
LOG_MAX_ASPECT = math.log(1 / 0.3)  # height / width is log-uniform between 0.3 and its inverse


def block_mask(seeds: Seeds, grid: Grid, num_masked: int, *, min_block: int | None = None) -> Tensor:
    """EVA's masks: random rectangles until `num_masked` patches are covered or ten draws in a row fail.

    The count is ragged: at most `num_masked` (104.45 on average, and 105 in 65 % of the masks, for 105 of 16 x 16).

    Args:
        seeds: one integer per sample, (B,).
        grid: rows and columns of the patch grid, each at least 2.
        num_masked: patches to mask, 0 to N.
        min_block: area of the smallest block in patches; by default EVA's 16 of 256, in proportion to the grid.

    Returns:
        bool_mask, (B, N), True = masked.

    Raises:
        ValueError: a grid, count or block size outside of these bounds.
    """
    min_block = _checked_min_block(grid, num_masked, min_block)
    return _unpack([_cover(_Blocks(seed, grid, min_block), num_masked) for seed in _integers(seeds)], grid)


def block_mask_exact(seeds: Seeds, grid: Grid, num_masked: int, *, min_block: int | None = None) -> Tensor:
    """EVA's masks with exactly `num_masked` patches each: static shapes, so no host sync and whole-graph compilation.

    It departs from EVA only where EVA stops short (the `block_mask` of the same seed is a subset): what is missing
    comes from further blocks of the same law, of which the last is cut to the count at its top or its bottom. Where ten
    draws in a row meet no free patch, as in nearly full masks, all free patches stand in for the block.

    Arguments, result and errors are those of `block_mask`.
    """
    min_block = _checked_min_block(grid, num_masked, min_block)
    every_patch = (1 << (grid[0] * grid[1])) - 1
    masks = []
    for seed in _integers(seeds):
        blocks = _Blocks(seed, grid, min_block)
        mask = _cover(blocks, num_masked)
        while missing := num_masked - mask.bit_count():
            free = every_patch & ~mask
            draws = (blocks.draw(missing) & free for _ in range(ATTEMPTS_PER_BLOCK))
            mask |= _cut(next(filter(None, draws), free), missing, from_top=blocks.uniform() < 0.5)
        masks.append(mask)
    return _unpack(masks, grid)


def random_mask(seeds: Seeds, grid: Grid, num_masked: int) -> Tensor:
    """Uniform masks with exactly `num_masked` patches each, every set of patches equally likely (SimMIM, MAE).

    Arguments, result and errors are those of `block_mask`.
    """
    _check(grid, num_masked)
    num_patches = grid[0] * grid[1]
    keys = [np.random.Generator(np.random.Philox(key=seed)).random(num_patches) for seed in _integers(seeds)]
    order = np.argsort(np.asarray(keys).reshape(-1, num_patches), axis=1, kind="stable")
    mask = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :num_masked], True, axis=1)
    return torch.from_numpy(mask)


class _Blocks:
    """The random rectangles of one sample, from a stream of uniforms that its seed alone fixes."""

    def __init__(self, seed: int, grid: Grid, min_block: int) -> None:
        self.rows, self.columns = grid
        self.min_block = min_block
        # Philox: any two keys give independent streams. Only `random` is called: NumPy versions agree on its values.
        self._generator = np.random.Generator(np.random.Philox(key=seed))
        self._uniforms: list[float] = []

    def uniform(self) -> float:
        if not self._uniforms:  # drawn many at a time: one call costs as much as forty values
            self._uniforms = self._generator.random(64).tolist()
        return self._uniforms.pop()

    def draw(self, max_block: int) -> int:
        """The patches of one block as bits; none if it is as high or as wide as the grid, which EVA rejects."""
        # As in `random.uniform`, the bounds of the area may be crossed: below `min_block` patches to go, larger blocks
        # are still drawn, and count if most of their patches are masked already.
        area = self.min_block + (max_block - self.min_block) * self.uniform()
        aspect = math.exp(LOG_MAX_ASPECT * (2 * self.uniform() - 1))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= self.rows or width >= self.columns:
            return 0
        top = int(self.uniform() * (self.rows - height + 1))
        left = int(self.uniform() * (self.columns - width + 1))
        return _rectangle(self.columns, height, width) << (top * self.columns + left)


@lru_cache(maxsize=4096)
def _rectangle(columns: int, height: int, width: int) -> int:
    """The bits of a rectangle in the top left corner of a grid with so many columns."""
    return sum(((1 << width) - 1) << (columns * row) for row in range(height))


def _cover(blocks: _Blocks, num_masked: int) -> int:
    mask, missing = 0, num_masked
    while missing > 0:
        for _ in range(ATTEMPTS_PER_BLOCK):
            new = blocks.draw(missing) & ~mask
            if 0 < new.bit_count() <= missing:
                break
        else:
            return mask
        mask |= new
        missing -= new.bit_count()
    return mask


def _cut(bits: int, count: int, *, from_top: bool) -> int:
    """The same patches less those that go beyond `count`, first or last in reading order."""
    while bits.bit_count() > count:
        bits ^= bits & -bits if from_top else 1 << (bits.bit_length() - 1)
    return bits


def _unpack(masks: Sequence[int], grid: Grid) -> Tensor:
    num_patches = grid[0] * grid[1]
    num_bytes = -(-num_patches // 8)
    packed = np.frombuffer(b"".join(mask.to_bytes(num_bytes, "little") for mask in masks), dtype=np.uint8)
    bits = np.unpackbits(packed.reshape(-1, num_bytes), axis=1, count=num_patches, bitorder="little")
    return torch.from_numpy(bits.view(bool))


def _integers(seeds: Seeds) -> list[int]:
    # Negative seeds are legal: hashes kept in int64 tensors have a sign, Philox keys have none.
    values = seeds.tolist() if isinstance(seeds, Tensor | np.ndarray) else seeds
    return [int(seed) % 2**64 for seed in values]


def _check(grid: Grid, num_masked: int) -> None:
    if min(grid) < 2:
        raise ValueError(f"grid is {grid}; masks need at least 2 rows and 2 columns of patches")
    if not 0 <= num_masked <= grid[0] * grid[1]:
        raise ValueError(f"num_masked is {num_masked}; a grid of {grid} allows 0 to {grid[0] * grid[1]}")


def _checked_min_block(grid: Grid, num_masked: int, min_block: int | None) -> int:
    _check(grid, num_masked)
    num_patches = grid[0] * grid[1]
    if min_block is None:
        return max(1, round(num_patches * 16 / 256))
    if not 1 <= min_block <= num_patches:
        raise ValueError(f"min_block is {min_block}; a grid of {grid} allows 1 to {num_patches}")
    return min_block
