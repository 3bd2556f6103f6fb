"""The target `pixels`: the normalised pixels of a patch."""

# B batch, N patches, K masked patches at most, T values of a patch

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.losses import mean_target, squared_error
from vfm_eva.targets.parts import Pixels
from vfm_eva.targets.patch_target import PatchTarget


class PixelTarget(PatchTarget):
    """Patches of the student's image, each normalised to mean 0 and variance 1, with a squared error loss.

    Source: He et al. 2022, MAE (arXiv:2111.06377), section 4.1 for normalised pixels.
    """

    is_cosine = False

    def __init__(self, target: Pixels, student: nn.Module, encoder: None, *, bf16: bool | None = None) -> None:
        super().__init__(nn.Identity())
        embedding: Any = student.patch_embed
        self.size: int = embedding.patch_size[0]
        self.width = 3 * self.size**2

    @torch.no_grad()
    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Cut the images into patches and normalize each patch, (B, N, T)."""
        patches = F.unfold(inputs.images.float(), self.size, stride=self.size).transpose(1, 2)  # (B, N, T)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        # MAE's epsilon. A patch of one colour gets zeros.
        return (patches - mean) / (variance + 1e-6).sqrt()

    def patch_loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Compute the squared error, averaged over the counted patches and their values."""
        return squared_error(prediction, target, counted)

    def constant_loss(self, target: Tensor, counted: Tensor) -> Tensor:
        """Compute the loss of predicting the mean patch everywhere."""
        return squared_error(mean_target(target, counted), target, counted)
