"""Which patches the student does not see: EVA's block-wise masks, the same with an exact count, and uniform ones.

Each mask is a pure function of its own integer seed, so a sample keeps its mask whatever batch, worker or rank it falls
in. All three functions share one signature: `(seeds, grid, num_masked) -> bool_mask`, True = masked, where the seeds
are. All masks of a batch are drawn in lock-step, one block of each at a time: give them many seeds at once. Of seeds on
a GPU block masks are drawn there, by a kernel, without a look at it from the host: the same masks.

Source: the block-wise algorithm of BEiT (Bao et al. 2021, arXiv:2106.08254, Algorithm 1) with EVA's parameters
(Fang et al. 2022, arXiv:2211.07636): 105 of 16 x 16 patches, blocks of at least 16, ten attempts per block.
"""

# B batch, A those still at work, T attempts at one block, N = rows * columns patches, row by row

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm_kernels.dispatch import fused, runs_triton
from vfm_kernels.library import define
from vfm_kernels.splitmix import Seeds, Words, keys_of, random_word

Grid = tuple[int, int]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

ATTEMPTS_PER_BLOCK = 10
LOG_MAX_ASPECT = math.log(1 / 0.3)  # height / width is log-uniform between 0.3 and its inverse
UNIFORMS_PER_ATTEMPT = 5  # area, aspect, top, left, and the coin
COIN = 4  # its number: from which end the last block of an exact mask is cut
PART = 256  # masks drawn at once: what is known of them stays in a core's cache


def block_mask(seeds: Seeds, grid: Grid, num_masked: int, *, min_block: int | None = None) -> Tensor:
    """EVA's masks: random rectangles until `num_masked` patches are covered or ten draws in a row fail.

    The count is ragged: at most `num_masked` (104.45 on average, and 105 in 65 % of the masks, for 105 of 16 x 16).

    Args:
        seeds: one integer per sample, (B,).
        grid: rows and columns of the patch grid, each at least 2.
        num_masked: patches to mask, 0 to N.
        min_block: area of the smallest block in patches; by default EVA's 16 of 256, in proportion to the grid.

    Returns:
        bool_mask, (B, N), True = masked; on the device of the seeds where these are a tensor.

    Raises:
        ValueError: a grid, count or block size outside of these bounds.
    """
    return _drawn(seeds, grid, num_masked, min_block, exact=False)


def block_mask_exact(seeds: Seeds, grid: Grid, num_masked: int, *, min_block: int | None = None) -> Tensor:
    """EVA's masks with exactly `num_masked` patches each: static shapes, so no host sync and whole-graph compilation.

    It departs from EVA only where EVA stops short (the `block_mask` of the same seed is a subset): what is missing
    comes from further blocks of the same law, of which the last is cut to the count at its top or its bottom. Where ten
    draws in a row meet no free patch, as in nearly full masks, all free patches stand in for the block.

    Arguments, result and errors are those of `block_mask`.
    """
    return _drawn(seeds, grid, num_masked, min_block, exact=True)


def random_mask(seeds: Seeds, grid: Grid, num_masked: int) -> Tensor:
    """Uniform masks with exactly `num_masked` patches each, every set of patches equally likely (SimMIM, MAE).

    Arguments, result and errors are those of `block_mask`.
    """
    _check(grid, num_masked)
    keys = random_word(keys_of(seeds)[:, None], np.arange(grid[0] * grid[1], dtype=np.uint64))
    mask = np.zeros(keys.shape, dtype=bool)
    if num_masked:
        chosen = np.argpartition(keys, num_masked - 1, axis=1)[:, :num_masked]
        np.put_along_axis(mask, chosen, True, axis=1)
    drawn = torch.from_numpy(mask)
    return drawn.to(seeds.device) if isinstance(seeds, Tensor) else drawn


def _drawn(seeds: Seeds, grid: Grid, num_masked: int, min_block: int | None, *, exact: bool) -> Tensor:
    _check(grid, num_masked)
    min_block = _min_block(grid, min_block)
    if isinstance(seeds, Tensor):
        if runs_triton(seeds) and fused(seeds):  # seeds of a data loader lie on the CPU, whatever is forced
            drawn: Tensor = torch.ops.vfm_kernels.block_mask(seeds.long(), *grid, num_masked, min_block, exact)
            return drawn
        return _plain(seeds, grid, num_masked, min_block, exact).to(seeds.device)
    return _plain(seeds, grid, num_masked, min_block, exact)


def _plain(seeds: Seeds, grid: Grid, num_masked: int, min_block: int, exact: bool) -> Tensor:
    keys = keys_of(seeds)
    bool_mask = np.zeros((len(keys), grid[0] * grid[1]), dtype=bool)
    for start in range(0, len(keys), PART):
        masks = _Masks(keys[start : start + PART], grid, num_masked, min_block, bool_mask[start : start + PART])
        masks.cover()
        if exact:
            masks.fill()
    return torch.from_numpy(bool_mask)


class _Masks:
    """Masks in the making, in `bool_mask` (B, N). Attempts are numbered; the seed alone fixes what each draws."""

    def __init__(self, keys: Words, grid: Grid, num_masked: int, min_block: int, bool_mask: Bools) -> None:
        self.keys, self.grid, self.min_block, self.bool_mask = keys, grid, min_block, bool_mask
        self.missing: Ints = np.full(len(keys), num_masked)
        self.attempts: Ints = np.zeros(len(keys), dtype=np.int64)
        self.down = np.tri(grid[0] + 1, grid[0], -1, dtype=np.float32)  # sums of what lies above
        self.right = np.tri(grid[1] + 1, grid[1], -1, dtype=np.float32).T.copy()  # and to the left

    def cover(self) -> None:
        """EVA's algorithm: a block is taken if it masks something new and not too much."""
        active = np.flatnonzero(self.missing)
        while len(active):
            masks, missing = self.bool_mask[active], self.missing[active]
            blocks = self._attempts(active)
            count = self._free_in(blocks, masks)
            taken, which = self._chosen(active, (count > 0) & (count <= missing[:, None]))
            self.bool_mask[active] = masks | (self._patches(blocks[which]) & taken[:, None])
            self.missing[active] = missing = missing - taken * count[which[1:]]
            active = active[taken & (missing > 0)]

    def fill(self) -> None:
        """Brings every mask to its count: blocks of the same law, the last of them cut."""
        active = np.flatnonzero(self.missing)
        while len(active):
            masks, missing = self.bool_mask[active], self.missing[active]
            blocks = self._attempts(active)
            found, which = self._chosen(active, self._free_in(blocks, masks) > 0)
            free = (self._patches(blocks[which]) | ~found[:, None]) & ~masks
            coin = _uniforms(self.keys[active], self.attempts[active] - 1, COIN)
            new = _first(free, missing, from_top=coin < 0.5)
            self.bool_mask[active] = masks | new
            self.missing[active] = missing = missing - np.count_nonzero(new, axis=1)
            active = active[missing > 0]

    def _attempts(self, active: Ints) -> Ints:
        """The next ten attempts at a block of each active mask: while none is taken, the mask stays as it is.

        A block as high or as wide as the grid has no patches: EVA rejects it.

        Returns:
            top, height, left, width, (4, A, T).
        """
        rows, columns = self.grid
        attempts = self.attempts[active, None] + np.arange(ATTEMPTS_PER_BLOCK)
        numbers = np.arange(COIN)[:, None, None]
        of_area, of_aspect, of_top, of_left = _uniforms(self.keys[active, None], attempts, numbers)
        # As in `random.uniform`, the bounds of the area may be crossed: below `min_block` patches to go, larger blocks
        # are still drawn, and count if most of their patches are masked already.
        area = self.min_block + (self.missing[active, None] - self.min_block) * of_area
        aspect = np.exp(LOG_MAX_ASPECT * (2 * of_aspect - 1))
        height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (height < rows) & (width < columns)
        height, width = height * fits, width * fits
        return np.array([of_top * (rows - height + 1), height, of_left * (columns - width + 1), width]).astype(np.int64)

    def _free_in(self, blocks: Ints, masks: Bools) -> Ints:
        """Patches of each block that are not masked yet, (A, T): four looks into a table of the masked ones before."""
        (rows, columns), (top, height, left, width) = self.grid, blocks
        planes = masks.reshape(-1, rows, columns).astype(np.float32)
        table = (self.down @ (planes @ self.right)).ravel()  # (A, rows + 1, columns + 1)
        corner = np.arange(0, table.size, (rows + 1) * (columns + 1))[:, None] + (top * (columns + 1) + left)
        below = corner + height * (columns + 1)
        masked = table[below + width] - table[below] - table[corner + width] + table[corner]
        free: Ints = height * width - masked.astype(np.int64)
        return free

    def _chosen(self, active: Ints, usable: Bools) -> tuple[Bools, tuple[Any, ...]]:
        """Of each mask's attempts (A, T): whether one is usable, and the place of the first such, else of the last."""
        found: Bools = np.logical_or.reduce(usable, axis=1)
        which = np.where(found, usable.argmax(axis=1), ATTEMPTS_PER_BLOCK - 1)
        self.attempts[active] += which + 1
        return found, (slice(None), np.arange(len(which)), which)

    def _patches(self, block: Ints) -> Bools:
        """The patches, (A, N), of a block each, (4, A)."""
        (rows, columns), (top, height, left, width) = self.grid, block[..., None]
        of_rows, of_columns = _span(top, height, rows), _span(left, width, columns)
        return of_rows.repeat(columns, axis=1) & np.tile(of_columns, rows)


def _uniforms(keys: Words, attempts: Ints, number: Ints | int) -> NDArray[np.floating[Any]]:
    """So numbered among the uniforms of a key's attempts."""
    words = random_word(keys, (attempts * UNIFORMS_PER_ATTEMPT + number).astype(np.uint64))
    uniforms: NDArray[np.floating[Any]] = (words >> np.uint64(11)) * 2.0**-53
    return uniforms


def _span(start: Ints, length: Ints, size: int) -> Bools:
    """Which of `size` places lie within the span of each row, (A, 1): (A, size)."""
    places = np.arange(size)
    within: Bools = (places >= start) & (places < start + length)
    return within


def _first(mask: Bools, count: Ints, *, from_top: Bools) -> Bools:
    """At most `count` of each mask's patches: the last where it is cut from the top, else the first."""
    rank = np.cumsum(mask, axis=1)
    beyond = np.where(from_top, rank[:, -1] - count, 0)[:, None]
    return mask & (rank > beyond) & (rank <= np.where(from_top, rank[:, -1], count)[:, None])


def _check(grid: Grid, num_masked: int) -> None:
    if min(grid) < 2:
        raise ValueError(f"grid is {grid}; masks need at least 2 rows and 2 columns of patches")
    if not 0 <= num_masked <= grid[0] * grid[1]:
        raise ValueError(f"num_masked is {num_masked}; a grid of {grid} allows 0 to {grid[0] * grid[1]}")


def _min_block(grid: Grid, min_block: int | None) -> int:
    num_patches = grid[0] * grid[1]
    if min_block is None:
        return max(1, round(num_patches * 16 / 256))
    if not 1 <= min_block <= num_patches:
        raise ValueError(f"min_block is {min_block}; a grid of {grid} allows 1 to {num_patches}")
    return min_block


def _run(seeds: Tensor, rows: int, columns: int, num_masked: int, min_block: int, exact: bool) -> Tensor:
    if runs_triton(seeds):
        from vfm_kernels.launch import masking

        return masking.block_mask(seeds, rows, columns, num_masked, min_block, exact)
    return _plain(seeds, (rows, columns), num_masked, min_block, exact).to(seeds.device)


define(
    "block_mask(Tensor seeds, SymInt rows, SymInt columns, SymInt num_masked, SymInt min_block, bool exact) -> Tensor",
    _run,
    lambda seeds, rows, columns, *_: seeds.new_empty(len(seeds), rows * columns, dtype=torch.bool),
)
