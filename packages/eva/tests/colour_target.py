"""A stranger's target: the mean colour of each masked patch, by the absolute error."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm_eva import Target
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.patch_target import PatchTarget


class Colour(Target):
    """The configuration."""

    type: Literal["colour"] = "colour"
    work: ClassVar[str] = "colour_target:ColourTarget"
    needs_teacher: ClassVar[bool] = False
    brightness: float = 1.0


class ColourTarget(PatchTarget):
    """The target itself."""

    width = 3
    is_cosine = False

    def __init__(self, target: Colour, student: nn.Module, encoder: None, *, bf16: bool | None = None) -> None:
        super().__init__(nn.Identity())
        self.brightness = target.brightness

    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        return self.brightness / 255 * F.adaptive_avg_pool2d(inputs.images.float(), grid).flatten(2).transpose(1, 2)

    def patch_loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        return torch.where(counted, (prediction.float() - target).abs().mean(dim=-1), 0.0).sum() / counted.sum()
