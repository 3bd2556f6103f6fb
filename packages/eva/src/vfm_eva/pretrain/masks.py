"""Masks for training, drawn for a whole step at once, each from the seed of its sample."""

# B batch, N patches

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.data import Batch, prefetch
from vfm.train import Data
from vfm_eva.pretrain.parts import Mask
from vfm_eva.targets.images import EvaInputs, EvaViews
from vfm_kernels import block_mask, block_mask_exact, random_mask

__all__ = ["MaskedData", "Masks", "block_exact_masks", "block_masks", "random_masks"]


def block_masks(mask: Mask, seeds: Tensor, grid: tuple[int, int], num_masked: int) -> Tensor:
    """Draw masks of rectangles with at most `num_masked` patches.

    Args:
        mask: Settings of the masks.
        seeds: Seed of each mask, (B,).
        grid: Rows and columns of the patches.
        num_masked: Largest number of masked patches.

    Returns:
        (B, N), True = masked.
    """
    return block_mask(seeds, grid, num_masked)


def block_exact_masks(mask: Mask, seeds: Tensor, grid: tuple[int, int], num_masked: int) -> Tensor:
    """Draw masks of rectangles with exactly `num_masked` patches, as `block_masks` does."""
    return block_mask_exact(seeds, grid, num_masked)


def random_masks(mask: Mask, seeds: Tensor, grid: tuple[int, int], num_masked: int) -> Tensor:
    """Draw masks of single patches with exactly `num_masked` patches, as `block_masks` does."""
    return random_mask(seeds, grid, num_masked)


@dataclass(frozen=True)
class Masks:
    """Draws the masks of batches.

    Attributes:
        config: The kind of mask.
        grid: Rows and columns of the student's patches.
        num_masked: Number of patches to mask. `block` masks may have a few fewer.
    """

    config: Mask
    grid: tuple[int, int]
    num_masked: int

    def add(self, batches: Sequence[Batch[EvaViews]]) -> list[Batch[EvaInputs]]:
        """Draw masks for the batches and add them."""
        # Draw all masks at once: a mask in a large group takes a tenth of the time of a mask drawn alone.
        seeds = [batch.inputs.mask_seed for batch in batches]
        sizes = list(map(len, seeds))
        if self.config.ratio:
            drawn: Tensor = self.config.build(torch.cat(seeds), self.grid, self.num_masked)
        else:
            drawn = torch.zeros(sum(sizes), self.grid[0] * self.grid[1], dtype=torch.bool)
        masks = torch.split(drawn, sizes)
        return [_with_mask(batch, mask) for batch, mask in zip(batches, masks, strict=True)]


def _with_mask(batch: Batch[EvaViews], mask: Tensor) -> Batch[EvaInputs]:
    views = batch.inputs
    inputs = EvaInputs(views.images, mask, views.teacher_images, views.targets, views.others)
    return Batch(inputs, batch.keys, batch.bad)


@dataclass(frozen=True)
class MaskedData:
    """Training data for `fit`: the steps of `data` with masks."""

    data: Data[EvaViews]
    masks: Masks

    def steps(
        self, start_step: int, num_steps: int, *, rank: int = 0, world_size: int = 1, micro_batch_size: int
    ) -> Iterator[list[Batch[EvaInputs]]]:
        """Yield the steps of `data` with masks. A mask depends only on (seed, step, sample).

        Args:
            start_step: First step.
            num_steps: Step after the last one.
            rank: Number of this process.
            world_size: Number of processes.
            micro_batch_size: Samples of a micro-batch.
        """
        steps = self.data.steps(
            start_step, num_steps, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size
        )
        # Masks are drawn in a thread during the previous step, so that training does not wait for them.
        return prefetch(map(self.masks.add, steps), 1, "masks")
