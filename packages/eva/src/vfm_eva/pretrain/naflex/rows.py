"""Rows of masked images: draws the masks of a step, each for its image's grid, and packs its images into rows."""

# B images, T patches of a row, K predicted patches of a row, p side of a patch

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from vfm.data import Batch, Ragged, prefetch
from vfm.train import Data
from vfm_eva.pretrain.naflex.images import SampleStrips
from vfm_eva.pretrain.naflex.packing import Grid, by_grid, pack_rows, take
from vfm_kernels import random_mask

__all__ = ["RowData", "RowInputs", "Rows"]


@dataclass(frozen=True)
class RowInputs:
    """The patches of several images, one after another."""

    strips: tuple[Tensor | None, ...]  # (1, 3, p, T p) uint8, of the student and of each teacher; None: the student's
    bool_mask: Tensor  # (1, T), True = masked
    index: Tensor  # (K,) int64: patches that are predicted
    grids: list[Grid]  # rows and columns of each image
    visible: tuple[Tensor, ...] | None = None  # patches of each image that are encoded; None: all

    def strip_of(self, teacher: int) -> Tensor:
        """Select the strip of a teacher, counted from 0, (3, p, T p)."""
        strip = self.strips[teacher + 1]
        student = self.strips[0]
        assert student is not None
        return student[0] if strip is None else strip[0]


@dataclass(frozen=True)
class Rows:
    """Makes rows from a step's images.

    Attributes:
        masked_ratio: Fraction of the patches that are masked. 0: none, and all are predicted.
        draw_masks: Maps seeds, a grid and a number of patches to masks, (B, N), as `Mask.build` does.
        num_prefix_tokens: Class and register tokens of each image.
        budget: Encoded tokens of a row at most, with prefix tokens.
        visible_only: Encode the visible patches alone.
    """

    masked_ratio: float
    draw_masks: Callable[[Tensor, Grid, int], Tensor]
    num_prefix_tokens: int
    budget: int
    visible_only: bool = False

    def pack(self, batches: Sequence[Batch[SampleStrips]]) -> list[Batch[RowInputs]]:
        """Draw the masks of a step's images, and pack them. Each row is a micro-batch."""
        grids: list[Grid] = []
        seeds = []
        columns = []
        keys: list[str] = []
        bad: list[tuple[str, str]] = []
        for batch in batches:
            bad += batch.bad
            if batch:
                grids += map(tuple, batch.inputs.grid.tolist())
                seeds.append(batch.inputs.mask_seed)
                columns.append(batch.inputs.strips)
                keys += batch.keys
        strips = list(map(_joined, zip(*columns, strict=True)))
        masks = self.masks(torch.cat(seeds), grids)
        visible = []
        lengths = []
        for mask in masks:
            encoded = mask
            if self.visible_only:
                encoded = (~mask).nonzero().flatten()
                visible.append(encoded)
            lengths.append(self.num_prefix_tokens + len(encoded))
        rows: list[Batch[RowInputs]] = []
        for numbers in pack_rows(lengths, self.budget):
            bool_mask = torch.cat(take(masks, numbers))
            predicted = bool_mask if self.masked_ratio else torch.ones_like(bool_mask)
            inputs = RowInputs(
                tuple(_row(parts, numbers) for parts in strips),
                bool_mask[None],
                predicted.nonzero().flatten(),
                take(grids, numbers),
                tuple(take(visible, numbers)) if visible else None,
            )
            rows.append(Batch(inputs, take(keys, numbers), [] if rows else bad))
        return rows

    def masks(self, seeds: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Draw the mask of each image, (N,), with the same fraction of its patches.

        Single patches are masked where no block fits, as in images of two rows, which would have no loss.
        """
        masks = [torch.empty(0)] * len(grids)
        for grid, numbers in by_grid(grids).items():
            num_patches = grid[0] * grid[1]
            drawn = torch.zeros(len(numbers), num_patches, dtype=torch.bool)
            if self.masked_ratio:
                num_masked = min(max(1, round(self.masked_ratio * num_patches)), num_patches - 1)
                drawn = self.draw_masks(seeds[numbers], grid, num_masked)
                empty = ~drawn.any(dim=1)
                drawn[empty] = random_mask(seeds[numbers][empty], grid, num_masked)
            for number, mask in zip(numbers, drawn, strict=True):
                masks[number] = mask
        return masks


@dataclass(frozen=True)
class RowData:
    """Training data for `fit`: the images of each step, with masks, in rows."""

    data: Data[SampleStrips]
    rows: Rows

    def steps(
        self, start_step: int, num_steps: int, *, rank: int = 0, world_size: int = 1, micro_batch_size: int
    ) -> Iterator[list[Batch[RowInputs]]]:
        """Yield the steps of `data`. Their rows depend only on (seed, step) and the number of processes."""
        steps = self.data.steps(
            start_step, num_steps, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size
        )
        # In a thread during the previous step, as for other masks.
        return prefetch(map(self.rows.pack, steps), 1, "rows")


def _joined(column: Sequence[Ragged | None]) -> list[Tensor] | None:
    """Join the strips that a model sees in all batches. None: it sees the student's."""
    parts = [strips.parts for strips in column if strips is not None]
    return list(chain.from_iterable(parts)) if parts else None


def _row(parts: list[Tensor] | None, numbers: Sequence[int]) -> Tensor | None:
    """Lay some of the strips out as a row, (1, 3, p, T p)."""
    return None if parts is None else torch.cat(take(parts, numbers), dim=2)[None]
