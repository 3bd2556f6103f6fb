"""Which patches the student does not see: EVA's block-wise masks, the same with an exact count, and uniform ones.

Each mask is a pure function of its own integer seed, so a sample keeps its mask whatever batch, worker or rank it falls
in. All three functions share one signature: `(seeds, grid, num_masked) -> bool_mask`, True = masked, on the CPU. All
masks of a batch are drawn in lock-step, one attempt of each at a time: give them many seeds at once.

Source: the block-wise algorithm of BEiT (Bao et al. 2021, arXiv:2106.08254, Algorithm 1) with EVA's parameters
(Fang et al. 2022, arXiv:2211.07636): 105 of 16 x 16 patches, blocks of at least 16, ten attempts per block.
"""

# B batch, A those still at work, N = rows * columns patches, row by row

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Seeds = Sequence[int] | np.ndarray | Tensor
Grid = tuple[int, int]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

ATTEMPTS_PER_BLOCK = 10
LOG_MAX_ASPECT = math.log(1 / 0.3)  # height / width is log-uniform between 0.3 and its inverse
UNIFORMS_PER_ATTEMPT = 5  # area, aspect, top, left, and from which end the last block of an exact mask is cut


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
    masks = _Masks(seeds, grid, num_masked, _checked_min_block(grid, num_masked, min_block))
    masks.cover()
    return torch.from_numpy(masks.bool_mask)


def block_mask_exact(seeds: Seeds, grid: Grid, num_masked: int, *, min_block: int | None = None) -> Tensor:
    """EVA's masks with exactly `num_masked` patches each: static shapes, so no host sync and whole-graph compilation.

    It departs from EVA only where EVA stops short (the `block_mask` of the same seed is a subset): what is missing
    comes from further blocks of the same law, of which the last is cut to the count at its top or its bottom. Where ten
    draws in a row meet no free patch, as in nearly full masks, all free patches stand in for the block.

    Arguments, result and errors are those of `block_mask`.
    """
    masks = _Masks(seeds, grid, num_masked, _checked_min_block(grid, num_masked, min_block))
    masks.cover()
    masks.fill()
    return torch.from_numpy(masks.bool_mask)


def random_mask(seeds: Seeds, grid: Grid, num_masked: int) -> Tensor:
    """Uniform masks with exactly `num_masked` patches each, every set of patches equally likely (SimMIM, MAE).

    Arguments, result and errors are those of `block_mask`.
    """
    _check(grid, num_masked)
    keys = _hash(_keys(seeds)[:, None], np.arange(grid[0] * grid[1], dtype=np.uint64))
    mask = np.zeros(keys.shape, dtype=bool)
    if num_masked:
        chosen = np.argpartition(keys, num_masked - 1, axis=1)[:, :num_masked]
        np.put_along_axis(mask, chosen, True, axis=1)
    return torch.from_numpy(mask)


class _Masks:
    """The masks of a batch in the making. Attempts are numbered; the seed alone fixes what each of them draws."""

    def __init__(self, seeds: Seeds, grid: Grid, num_masked: int, min_block: int) -> None:
        self.keys, self.grid, self.min_block = _keys(seeds), grid, min_block
        self.bool_mask: Bools = np.zeros((len(self.keys), grid[0] * grid[1]), dtype=bool)
        self.missing: Ints = np.full(len(self.keys), num_masked)
        self.attempts: Ints = np.zeros(len(self.keys), dtype=np.int64)

    def cover(self) -> None:
        """EVA's algorithm: a block is taken if it masks something new and not too much."""
        active = np.flatnonzero(self.missing)
        failures = np.zeros(len(active), dtype=np.int64)
        while len(active):
            new, _ = self._attempt(active)
            count = _count(new)
            missing = self.missing[active]
            taken = (count > 0) & (count <= missing)
            self._take(active[taken], new[taken], count[taken])
            failures = np.where(taken, 0, failures + 1)
            going_on = (missing > np.where(taken, count, 0)) & (failures < ATTEMPTS_PER_BLOCK)
            active, failures = active[going_on], failures[going_on]

    def fill(self) -> None:
        """Brings every mask to its count: blocks of the same law, the last of them cut."""
        active = np.flatnonzero(self.missing)
        failures = np.zeros(len(active), dtype=np.int64)
        while len(active):
            new, from_top = self._attempt(active)
            failures = np.where(new.any(axis=1), 0, failures + 1)
            new |= (failures == ATTEMPTS_PER_BLOCK)[:, None] & ~self.bool_mask[active]
            new = _first(new, self.missing[active], from_top)
            self._take(active, new, _count(new))
            going_on = self.missing[active] > 0
            active, failures = active[going_on], failures[going_on]

    def _take(self, which: Ints, new: Bools, count: Ints) -> None:
        self.bool_mask[which] |= new
        self.missing[which] -= count

    def _attempt(self, active: Ints) -> tuple[Bools, Bools]:
        """The free patches that one more block of each active mask covers, (A, N), and a coin for each, (A,).

        A block as high or as wide as the grid covers none: EVA rejects it.
        """
        rows, columns = self.grid
        first = self.attempts[active, None] * UNIFORMS_PER_ATTEMPT
        words = _hash(self.keys[active, None], (first + np.arange(UNIFORMS_PER_ATTEMPT)).astype(np.uint64))
        of_area, of_aspect, of_top, of_left, coin = ((words >> np.uint64(11)) * 2.0**-53).T
        self.attempts[active] += 1
        # As in `random.uniform`, the bounds of the area may be crossed: below `min_block` patches to go, larger blocks
        # are still drawn, and count if most of their patches are masked already.
        area = self.min_block + (self.missing[active] - self.min_block) * of_area
        aspect = np.exp(LOG_MAX_ASPECT * (2 * of_aspect - 1))
        height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        height[(height >= rows) | (width >= columns)] = 0
        of_rows = _span(np.floor(of_top * (rows - height + 1)), height, rows)
        of_columns = _span(np.floor(of_left * (columns - width + 1)), width, columns)
        block = (of_rows[:, :, None] & of_columns[:, None, :]).reshape(len(active), -1)
        return block & ~self.bool_mask[active], coin < 0.5


def _span(start: NDArray[np.float64], length: NDArray[np.float64], size: int) -> Bools:
    """Which of `size` places lie within a span of each row, (A, size)."""
    places = np.arange(size)
    return (places >= start[:, None]) & (places < (start + length)[:, None])


def _count(mask: Bools) -> Ints:
    count: Ints = np.count_nonzero(mask, axis=1)
    return count


def _first(mask: Bools, count: Ints, from_top: Bools) -> Bools:
    """At most `count` of each mask's patches: the last where it is cut from the top, else the first."""
    rank = np.cumsum(mask, axis=1)
    beyond = np.where(from_top, rank[:, -1] - count, 0)[:, None]
    return mask & (rank > beyond) & (rank <= np.where(from_top, rank[:, -1], count)[:, None])


def _keys(seeds: Seeds) -> NDArray[np.uint64]:
    """Neighbouring seeds lead to unrelated keys. Negative seeds are legal: hashes kept in int64 tensors have a sign."""
    if isinstance(seeds, Tensor):
        seeds = seeds.cpu().numpy()
    values = seeds if isinstance(seeds, np.ndarray) else np.array([int(seed) % 2**64 for seed in seeds], np.uint64)
    return _mixed(values.astype(np.uint64))


def _hash(key: NDArray[np.uint64], number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The random word of a number in a key's stream: SplitMix64 (Steele et al. 2014), which can begin anywhere."""
    return _mixed(key + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


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
