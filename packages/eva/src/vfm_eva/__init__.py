"""EVA for vfm: masked pre-training, its targets computed beforehand, and fine-tuning of the encoder.

The classes here are configurations and import no torch. As a library: `pretrain.task` has the pre-training task,
`targets.teacher` its targets, `pretrain.masks` the masks, `finetune.classifier` the fine-tuning task.
"""

from vfm_eva.finetune.stages import EvaFinetune, FinetuneAugmentation
from vfm_eva.pretrain.parts import (
    BlockExactMask,
    BlockMask,
    Decoder,
    Mask,
    RandomMask,
    Student,
)
from vfm_eva.pretrain.stages import EvaClip, EvaPretrain
from vfm_eva.targets.parts import Augmentation, Codes, EvaTeacher, Features, Pixels, Target
from vfm_eva.targets.stages import EvaTargets

__all__ = [
    "Augmentation", "BlockExactMask", "BlockMask", "Codes", "Decoder", "EvaClip", "EvaFinetune", "EvaPretrain",
    "EvaTargets", "EvaTeacher", "Features", "FinetuneAugmentation", "Mask", "Pixels", "RandomMask", "Student",
    "Target",
]  # fmt: skip
