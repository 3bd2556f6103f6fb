"""EVA for vfm: masked pre-training, its targets computed beforehand, and fine-tuning of the encoder.

The classes here are configurations and import no torch. As a library: `vfm_eva.task` has the pre-training task,
`vfm_eva.teacher` its targets, `vfm_eva.masks` the masks, `vfm_eva.classifier` the fine-tuning task.
"""

from vfm_eva.stages import EvaClip, EvaFinetune, EvaPretrain, EvaTargets
from vfm_eva.stages_parts import (
    Augmentation,
    BlockExactMask,
    BlockMask,
    Decoder,
    EvaTeacher,
    FinetuneAugmentation,
    Mask,
    RandomMask,
    Student,
    Target,
)

__all__ = [
    "Augmentation", "BlockExactMask", "BlockMask", "Decoder", "EvaClip", "EvaFinetune", "EvaPretrain", "EvaTargets",
    "EvaTeacher", "FinetuneAugmentation", "Mask", "RandomMask", "Student", "Target",
]  # fmt: skip
