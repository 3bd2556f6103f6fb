"""CLIP training for vfm: the stage `clip.train` and the losses that it can minimise.

The classes here are configurations and import no torch. As a library: `vfm_clip.task` has the contrastive task,
`vfm_clip.losses` the losses, `vfm_clip.towers` locks and `vfm_clip.parameter_groups` learning rates by layer.
"""

from vfm_clip.stages import (
    Augmentation,
    ClipLoading,
    ClipLoss,
    ClipTrain,
    Distillation,
    DistinctInfoNce,
    InfoNce,
    LogitBias,
    LogitScale,
    Siglip,
    Tower,
    VisionTower,
)

__all__ = [
    "Augmentation", "ClipLoading", "ClipLoss", "ClipTrain", "Distillation", "DistinctInfoNce", "InfoNce", "LogitBias",
    "LogitScale", "Siglip", "Tower", "VisionTower",
]  # fmt: skip
