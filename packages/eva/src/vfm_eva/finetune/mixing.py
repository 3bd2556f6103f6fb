"""Mixup and CutMix, drawn once for a step, of neighbouring samples, so that no cut into micro-batches changes them."""

# B batch, C classes

from __future__ import annotations

import torch
from timm.data import Mixup
from torch import Tensor

from vfm.data import SampleDraw
from vfm_eva.finetune.labeled_images import seeded_global_generators

__all__ = ["StepMix", "paired"]


class StepMix:
    """timm's mixing with one draw for all micro-batches and processes of a step; set `step` before it.

    Args:
        mixup: alpha of mixup; 0: none.
        cutmix: alpha of CutMix; 0: none.
        label_smoothing: share of the target spread evenly over all classes.
        num_classes: C.
        seed: of the draws.
    """

    def __init__(self, mixup: float, cutmix: float, label_smoothing: float, num_classes: int, seed: int) -> None:
        self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self.seed, self.step = seed, 0

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed images, (B, ...), their targets, (B, C), and the label of the first of the two, (B,); B is even.

        Their order is that of `paired`.
        """
        pixels, labels = paired(pixels), paired(labels)
        with seeded_global_generators(SampleDraw.of(self.seed, self.step, -1).seed):  # samples count from 0
            mixed, targets = self.mix(pixels, labels)
        return mixed, targets, labels


def paired(batch: Tensor) -> Tensor:
    """Return a batch in an order in which timm's `Mixup`, which mixes the first with the last, mixes neighbours."""
    return torch.cat([batch[::2], batch[1::2].flip(0)])
