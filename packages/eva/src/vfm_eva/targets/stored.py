"""Targets that are computed beforehand and loaded with the batches."""

# B batch, N patches, T target width

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfm.plugin import SampleCache
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.patch_target import PatchTarget
from vfm_eva.targets.pca import Pca


class StoredTargets(PatchTarget):
    """Targets that are stored and loaded with the batches.

    Args:
        width: Channels of the target, T.
        decode: Converts stored values to (B, N, T), such as a `Pca`. Default: the values are the target.
        grid: Rows and columns of the stored patches.
    """

    def __init__(self, width: int, decode: nn.Module | None = None, grid: tuple[int, ...] | None = None) -> None:
        super().__init__(decode or nn.Identity())
        self.width = width
        self.grid = (grid[0], grid[1]) if grid else None

    @torch.no_grad()
    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Decode the stored targets of a batch, (B, N, T)."""
        target: Tensor = self.module(inputs.targets)
        return target


def load_targets(cache: SampleCache) -> StoredTargets:
    """Load the decoder for the stored targets of a cache."""
    if not cache.basis:
        return StoredTargets(cache.shape[-1], grid=cache.shape[:-1])
    pca = Pca.load(cache.path)
    return StoredTargets(len(pca.mean), pca, cache.shape[:-1])
