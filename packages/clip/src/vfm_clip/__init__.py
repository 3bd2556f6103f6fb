"""CLIP training for vfm: the stage `clip.train` and the losses that it can minimise.

The classes here are configurations and import no torch. As a library: `vfm_clip.task` has the contrastive task
and `vfm_clip.losses` the losses.
"""

from vfm_clip.loss_parts import (
    ClipLoss,
    Distillation,
    DistinctInfoNce,
    InfoNce,
    LogitBias,
    Siglip,
)
from vfm_clip.stages import (
    Augmentation,
    ClipLoading,
    ClipTrain,
    LogitScale,
    Tower,
    VisionTower,
)

__all__ = [
    "Augmentation", "ClipLoading", "ClipLoss", "ClipTrain", "Distillation", "DistinctInfoNce",
    "InfoNce", "LogitBias", "LogitScale", "Siglip", "Tower", "VisionTower",
]  # fmt: skip
