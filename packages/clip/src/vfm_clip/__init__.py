"""CLIP training for vfm: the stage `clip.train` and the losses that it can minimise.

The classes here are configurations and import no torch. As a library: `vfm_clip.task` has the contrastive task
and `vfm_clip.losses` the losses.
"""

from vfm_clip.loss_parts import ClipLoss, Distillation, DistinctInfoNce, InfoNce, LogitBias, Siglip
from vfm_clip.stages import ClipLoading, ClipTrain, CropAugmentation, LogitScale, Tower, VisionTowerTraining

__all__ = [
    "ClipLoading", "ClipLoss", "ClipTrain", "CropAugmentation", "Distillation", "DistinctInfoNce",
    "InfoNce", "LogitBias", "LogitScale", "Siglip", "Tower", "VisionTowerTraining",
]  # fmt: skip
