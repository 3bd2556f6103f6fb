"""CLIP training for vfm: the stage `clip.train` and the losses that it can minimise.

The classes here are configurations and import no torch. As a library: `vfm_clip.task` has the contrastive task,
`vfm_clip.losses` the losses, `vfm_clip.towers` locks, `vfm_clip.update` LoRA and `vfm_clip.parameter_groups` learning
rates by layer.
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
    ClipUpdate,
    LogitScale,
    Lora,
    Tower,
    VisionTower,
    WholeTowers,
)

__all__ = [
    "Augmentation", "ClipLoading", "ClipLoss", "ClipTrain", "ClipUpdate", "Distillation", "DistinctInfoNce",
    "InfoNce", "LogitBias", "LogitScale", "Lora", "Siglip", "Tower", "VisionTower", "WholeTowers",
]  # fmt: skip
