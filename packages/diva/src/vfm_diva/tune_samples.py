"""What a step of `diva.tune` takes of a sample besides its views: which patches are told, drawn from its own seed."""

# N patches

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.data.loader import SampleSeed
from vfm.data.sample import Sample
from vfm_diva.samples import MakeViews

PATCH_STREAM = 0x70617463  # sets the seed apart from those of crop and noise


@dataclass(frozen=True)
class MakeDrawn:
    """Makes `patch_draws` (N,), uniform in [0, 1), besides what `MakeViews` makes."""

    views: MakeViews
    num_patches: int

    def __call__(self, sample: Sample, seed: SampleSeed) -> dict[str, Tensor]:
        """The tensors of one sample.

        Raises:
            BadSample: its picture cannot be read.
        """
        draws = torch.Generator().manual_seed(seed ^ PATCH_STREAM)
        return {**self.views(sample, seed), "patch_draws": torch.rand(self.num_patches, generator=draws)}
