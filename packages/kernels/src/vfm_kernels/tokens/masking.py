"""Draw EVA's block-wise masks, also with exact count, and uniform masks.

Each mask is a pure function of its integer seed, so a sample keeps its mask in any batch, worker or rank. The three
functions share one signature, `(seeds, grid, num_masked) -> bool_mask`, True = masked. All masks of a batch are drawn
in lock-step, block by block, so pass many seeds at once.

Source: the block-wise algorithm of BEiT (Bao et al. 2021, arXiv:2106.08254, Algorithm 1) with EVA's parameters
(Fang et al. 2022, arXiv:2211.07636): 105 of 16 x 16 patches, blocks of at least 16, ten attempts per block.
"""

# B batch, A masks that are not finished, T attempts at one block, N = rows * columns patches, row by row

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Seeds = Sequence[int] | np.ndarray | Tensor
Words = NDArray[np.uint64]
Grid = tuple[int, int]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

ATTEMPTS_PER_BLOCK = 10  # BEiT's
LOG_MAX_ASPECT = math.log(1 / 0.3)  # height / width is log-uniform between 0.3 and its inverse
UNIFORMS_PER_ATTEMPT = 5  # area, aspect, top, left, and the coin
COIN = 4  # number of the uniform that decides at which end the last block of an exact mask is cut
PART = 256  # masks drawn at once: their state, about 64 KiB of booleans, stays in a core's cache


def block_mask(seeds: Seeds, grid: Grid, num_masked: int, *, min_block: int | None = None) -> Tensor:
    """Draw EVA's block-wise masks.

    Random rectangles are drawn until `num_masked` patches are covered or ten draws in a row fail. The counts vary and
    are at most `num_masked`. For 105 of 16 x 16 patches, they are 104.45 on average, and 105 in 65 % of the masks.

    Args:
        seeds: One integer per sample, (B,).
        grid: Rows and columns of the patch grid, each at least 2.
        num_masked: Patches to mask, 0 to N.
        min_block: Area of the smallest block in patches. Default: EVA's 16 of 256, in proportion to the grid.

    Returns:
        bool_mask, (B, N), True = masked, on the device of the seeds if they are a tensor.

    Raises:
        ValueError: If grid, count or block size is outside these bounds.
    """
    return _drawn(seeds, grid, num_masked, min_block, exact=False)


def block_mask_exact(seeds: Seeds, grid: Grid, num_masked: int, *, min_block: int | None = None) -> Tensor:
    """Draw EVA's masks with exactly `num_masked` patches each.

    Equal counts allow static shapes and whole-graph compilation. The masks differ from EVA's only where EVA stops
    short: `block_mask` of the same seed is a subset. The missing patches come from further blocks of the same
    distribution, and the last block is cut to the count at its top or its bottom. Where ten draws in a row find no free
    patch, as in nearly full masks, all free patches replace the block.

    Args:
        seeds: One integer per sample, (B,).
        grid: Rows and columns of the patch grid, each at least 2.
        num_masked: Patches to mask, 0 to N.
        min_block: Area of the smallest block in patches, as for `block_mask`.

    Returns:
        bool_mask, (B, N), True = masked.

    Raises:
        ValueError: As for `block_mask`.
    """
    return _drawn(seeds, grid, num_masked, min_block, exact=True)


def random_mask(seeds: Seeds, grid: Grid, num_masked: int) -> Tensor:
    """Draw uniform random masks with exactly `num_masked` patches each.

    Every set of patches is equally likely, as in SimMIM and MAE.

    Args:
        seeds: One integer per sample, (B,).
        grid: Rows and columns of the patch grid, each at least 2.
        num_masked: Patches to mask, 0 to N.

    Returns:
        bool_mask, (B, N), True = masked.

    Raises:
        ValueError: As for `block_mask`.
    """
    _check(grid, num_masked)
    keys = random_word(keys_of(seeds)[:, None], np.arange(grid[0] * grid[1], dtype=np.uint64))
    mask = np.zeros(keys.shape, dtype=bool)
    if num_masked:
        # The smallest of independent random words are a uniform choice. Equal words of 64 bits do not occur in
        # practice.
        chosen = np.argpartition(keys, num_masked - 1, axis=1)[:, :num_masked]
        np.put_along_axis(mask, chosen, True, axis=1)
    return _as_tensor(mask, seeds)


def _drawn(seeds: Seeds, grid: Grid, num_masked: int, min_block: int | None, *, exact: bool) -> Tensor:
    _check(grid, num_masked)
    min_block = _min_block(grid, min_block)
    keys = keys_of(seeds)
    bool_mask = np.zeros((len(keys), grid[0] * grid[1]), dtype=bool)
    for start in range(0, len(keys), PART):
        masks = _Masks(keys[start : start + PART], grid, num_masked, min_block, bool_mask[start : start + PART])
        masks.cover()
        if exact:
            masks.fill()
    return _as_tensor(bool_mask, seeds)


def _as_tensor(mask: Bools, seeds: Seeds) -> Tensor:
    bool_mask = torch.from_numpy(mask)
    if not isinstance(seeds, Tensor):
        return bool_mask
    return bool_mask.to(seeds.device)


class _Masks:
    """Unfinished masks, in `bool_mask` (B, N). Each numbered attempt depends only on the seed and its number."""

    def __init__(self, keys: Words, grid: Grid, num_masked: int, min_block: int, bool_mask: Bools) -> None:
        self.keys = keys
        self.grid = grid
        self.min_block = min_block
        self.bool_mask = bool_mask
        self.missing: Ints = np.full(len(keys), num_masked)
        self.attempts: Ints = np.zeros(len(keys), dtype=np.int64)
        # Sums by products with triangular matrices, which BLAS computes faster than NumPy its cumulative sums at these
        # sizes. Counts below 2^24 are exact in fp32.
        self.down = np.tri(grid[0] + 1, grid[0], -1, dtype=np.float32)  # sums the rows above
        self.right = np.tri(grid[1] + 1, grid[1], -1, dtype=np.float32).T.copy()  # sums the columns to the left

    def cover(self) -> None:
        """Run EVA's algorithm.

        A block is taken if it masks at least one new patch and not more than are missing.
        """
        active = np.flatnonzero(self.missing)
        while len(active):
            masks = self.bool_mask[active]
            missing = self.missing[active]
            blocks = self._attempts(active)
            count = self._free_in(blocks, masks)
            # EVA looks at up to ten blocks and takes the first that fits. A mask for which none fits stays short.
            taken, which = self._chosen(active, (count > 0) & (count <= missing[:, None]))
            self.bool_mask[active] = masks | (self._patches(blocks[which]) & taken[:, None])
            self.missing[active] = missing = missing - taken * count[which[1:]]
            active = active[taken & (missing > 0)]

    def fill(self) -> None:
        """Bring every mask to its count with blocks of the same distribution, the last of which is cut."""
        active = np.flatnonzero(self.missing)
        while len(active):
            masks = self.bool_mask[active]
            missing = self.missing[active]
            blocks = self._attempts(active)
            has_block, which = self._chosen(active, self._free_in(blocks, masks) > 0)
            free = (self._patches(blocks[which]) | ~has_block[:, None]) & ~masks
            coin = _uniforms(self.keys[active], self.attempts[active] - 1, COIN)
            new = _first(free, missing, from_top=coin < 0.5)
            self.bool_mask[active] = masks | new
            self.missing[active] = missing = missing - np.count_nonzero(new, axis=1)
            active = active[missing > 0]

    def _attempts(self, active: Ints) -> Ints:
        """Draw the next ten attempts at a block for each active mask.

        All ten can be drawn at once because a mask does not change until an attempt succeeds. A block as high or as
        wide as the grid gets no patches, because EVA rejects it.

        Returns:
            top, height, left, width, (4, A, T).
        """
        rows, columns = self.grid
        attempts = self.attempts[active, None] + np.arange(ATTEMPTS_PER_BLOCK)
        numbers = np.arange(COIN)[:, None, None]
        of_area, of_aspect, of_top, of_left = _uniforms(self.keys[active, None], attempts, numbers)
        # As in `random.uniform`, the bounds of the area may be in reverse order: with fewer than `min_block` patches
        # missing, larger blocks are still drawn, and are taken if most of their patches are masked already.
        area = self.min_block + (self.missing[active, None] - self.min_block) * of_area
        aspect = np.exp(LOG_MAX_ASPECT * (2 * of_aspect - 1))
        height = np.rint(np.sqrt(area * aspect))
        width = np.rint(np.sqrt(area / aspect))
        fits = (height < rows) & (width < columns)
        # A block that does not fit becomes empty, so it is never usable, but still counts as an attempt.
        height, width = height * fits, width * fits
        return np.array([of_top * (rows - height + 1), height, of_left * (columns - width + 1), width]).astype(np.int64)

    def _free_in(self, blocks: Ints, masks: Bools) -> Ints:
        """Count the patches of each block that are not masked yet, (A, T), by a summed-area table of the masks."""
        (rows, columns), (top, height, left, width) = self.grid, blocks
        planes = masks.reshape(-1, rows, columns).astype(np.float32)
        table = (self.down @ (planes @ self.right)).ravel()  # (A, rows + 1, columns + 1)
        corner = np.arange(0, table.size, (rows + 1) * (columns + 1))[:, None] + (top * (columns + 1) + left)
        below = corner + height * (columns + 1)
        masked = table[below + width] - table[below] - table[corner + width] + table[corner]
        free: Ints = height * width - masked.astype(np.int64)
        return free

    def _chosen(self, active: Ints, usable: Bools) -> tuple[Bools, tuple[Any, ...]]:
        """Find the first usable attempt (A, T) of each mask, else its last, and whether a usable one exists, (A,)."""
        has_usable: Bools = np.logical_or.reduce(usable, axis=1)
        which = np.where(has_usable, usable.argmax(axis=1), ATTEMPTS_PER_BLOCK - 1)
        self.attempts[active] += which + 1
        return has_usable, (slice(None), np.arange(len(which)), which)

    def _patches(self, block: Ints) -> Bools:
        """Mark the patches (A, N) of each mask's block, (4, A)."""
        (rows, columns), (top, height, left, width) = self.grid, block[..., None]
        in_rows, in_columns = _span(top, height, rows), _span(left, width, columns)
        return in_rows.repeat(columns, axis=1) & np.tile(in_columns, rows)


def keys_of(seeds: Seeds) -> Words:
    """Map seeds to unrelated keys, even for neighbouring seeds. Hashes kept in int64 tensors may be negative."""
    if isinstance(seeds, Tensor):
        seeds = seeds.cpu().numpy()
    if not isinstance(seeds, np.ndarray):
        seeds = np.array([int(seed) % 2**64 for seed in seeds], np.uint64)
    return _scrambled(seeds.astype(np.uint64))


def random_word(key: Words, number: Words) -> Words:
    """Compute the random word at a number in a key's stream by SplitMix64 (Steele et al. 2014).

    The stream can be read at any number, so a draw does not depend on the order of drawing.
    """
    return _scrambled(key + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def _scrambled(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _uniforms(keys: Words, attempts: Ints, number: Ints | int) -> NDArray[np.floating[Any]]:
    """Draw the uniform with a number within each attempt, in [0, 1) with 53 bits."""
    # Each number of the stream has a fixed use, so draws do not depend on how many attempts are evaluated at once.
    words = random_word(keys, (attempts * UNIFORMS_PER_ATTEMPT + number).astype(np.uint64))
    uniforms: NDArray[np.floating[Any]] = (words >> np.uint64(11)) * 2.0**-53
    return uniforms


def _span(start: Ints, length: Ints, size: int) -> Bools:
    """Mark the positions within each row's span, (A, size).

    Start and length are (A, 1).
    """
    positions = np.arange(size)
    within: Bools = (positions >= start) & (positions < start + length)
    return within


def _first(mask: Bools, count: Ints, *, from_top: Bools) -> Bools:
    """Select at most `count` patches of each mask.

    A mask that is cut from the top keeps its last patches, others their first ones.
    """
    rank = np.cumsum(mask, axis=1)
    beyond = np.where(from_top, rank[:, -1] - count, 0)[:, None]
    return mask & (rank > beyond) & (rank <= np.where(from_top, rank[:, -1], count)[:, None])


def _check(grid: Grid, num_masked: int) -> None:
    if min(grid) < 2:
        raise ValueError(f"grid must have at least 2 rows and 2 columns of patches, got {grid}")
    if not 0 <= num_masked <= grid[0] * grid[1]:
        raise ValueError(f"num_masked must be between 0 and {grid[0] * grid[1]} for a grid of {grid}, got {num_masked}")


def _min_block(grid: Grid, min_block: int | None) -> int:
    num_patches = grid[0] * grid[1]
    if min_block is None:
        # BEiT's 16 patches of a grid of 16 x 16, in proportion.
        return max(1, round(num_patches * 16 / 256))
    if not 1 <= min_block <= num_patches:
        raise ValueError(f"min_block must be between 1 and {num_patches} for a grid of {grid}, got {min_block}")
    return min_block
