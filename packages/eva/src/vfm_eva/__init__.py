"""EVA for vfm: masked pre-training, precomputed targets, and fine-tuning of the encoder.

The classes here are configurations and import no torch. To use the package as a library, see `pretrain.task` for the
pre-training task, `targets.teacher` for its targets, `pretrain.masks` for the masks, and `finetune.classifier` for the
fine-tuning task.
"""

from vfm_eva.finetune.stages import EvaFinetune, FinetuneAugmentation
from vfm_eva.pretrain.parts import BlockExactMask, BlockMask, Decoder, Mask, RandomMask, Student
from vfm_eva.pretrain.stages import EvaClip, EvaPretrain
from vfm_eva.targets.parts import Codes, EvaTeacher, Features, Pixels, Target, TargetAugmentation
from vfm_eva.targets.stages import EvaTargets

__all__ = [
    "BlockExactMask",
    "BlockMask",
    "Codes",
    "Decoder",
    "EvaClip",
    "EvaFinetune",
    "EvaPretrain",
    "EvaTargets",
    "EvaTeacher",
    "Features",
    "FinetuneAugmentation",
    "Mask",
    "Pixels",
    "RandomMask",
    "Student",
    "Target",
    "TargetAugmentation",
]  # fmt: skip
