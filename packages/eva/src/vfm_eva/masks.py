"""The masks of a training: drawn for a whole step at once, each from its own sample's seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vfm.data.ahead import read_ahead
from vfm.data.loader import Batch
from vfm.train import Data
from vfm_eva.stage import MaskKind
from vfm_kernels import block_mask, block_mask_exact, random_mask

MASKS = {"block": block_mask, "block_exact": block_mask_exact, "random": random_mask}


@dataclass(frozen=True)
class Masks:
    """Adds `bool_mask` (B, N), True = masked, to batches that hold `mask_seed` (B,).

    kind: which of `MASKS`.
    grid: rows and columns of the student's patches.
    num_masked: patches to mask; `block` masks may have a few less.
    """

    kind: MaskKind
    grid: tuple[int, int]
    num_masked: int

    def added(self, batches: list[Batch]) -> list[Batch]:
        """The batches with their masks, all drawn at once: a mask of many costs a tenth of one drawn alone."""
        seeds = [batch["mask_seed"] for batch in batches]
        masks = torch.split(
            MASKS[self.kind](torch.cat(seeds), self.grid, self.num_masked), [len(part) for part in seeds]
        )
        return [{**batch, "bool_mask": mask} for batch, mask in zip(batches, masks, strict=True)]


@dataclass(frozen=True)
class MaskedData:
    """The steps of `data`, as `fit` takes them, with their masks."""

    data: Data
    masks: Masks

    def steps(
        self, start_step: int, num_steps: int, *, rank: int = 0, world_size: int = 1, micro_batch_size: int
    ) -> Iterator[list[Batch]]:
        """Those of `data`; what a mask is hangs on (seed, step, sample) alone.

        The masks of a step are drawn in a thread while the one before is computed, so nobody waits for them.
        """
        steps = self.data.steps(
            start_step, num_steps, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size
        )
        return read_ahead(map(self.masks.added, steps), 1, "masks")
