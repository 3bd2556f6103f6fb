"""Mixup and CutMix of neighbouring samples, drawn once per step, so that micro-batches do not change the result."""

# B batch, C classes

from __future__ import annotations

import torch
from timm.data import Mixup
from torch import Tensor

from vfm.data import SampleDraw
from vfm_eva.finetune.labeled_images import seeded_global_generators

__all__ = ["StepMix", "paired"]


class StepMix:
    """timm's mixing with a single draw for all micro-batches and processes of a step. Set `step` before each step.

    Args:
        mixup: alpha of mixup. 0: none.
        cutmix: alpha of CutMix. 0: none.
        label_smoothing: Share of the target spread evenly over all classes.
        num_classes: Number of classes, C.
        seed: Seed of the draws.
    """

    def __init__(self, mixup: float, cutmix: float, label_smoothing: float, num_classes: int, seed: int) -> None:
        self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self.seed = seed
        self.step = 0

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix images, (B, ...), with even B, and return them with targets, (B, C), and each pair's first label, (B,).

        They are returned in the order of `paired`.
        """
        pixels = paired(pixels)
        labels = paired(labels)
        with seeded_global_generators(SampleDraw.of(self.seed, self.step, -1).seed):  # -1: no sample has this index
            mixed, targets = self.mix(pixels, labels)
        return mixed, targets, labels


def paired(batch: Tensor) -> Tensor:
    """Reorder a batch so that timm's `Mixup` mixes neighbours.

    `Mixup` mixes the first sample with the last.
    """
    # Neighbours are in the same micro-batch for any even micro-batch, so its size changes no pair.
    return torch.cat([batch[::2], batch[1::2].flip(0)])
