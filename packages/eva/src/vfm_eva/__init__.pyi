from .finetune.stages import (
    EvaFinetune as EvaFinetune,
    FinetuneAugmentation as FinetuneAugmentation,
)
from .pretrain.parts import (
    BlockExactMask as BlockExactMask,
    BlockMask as BlockMask,
    Decoder as Decoder,
    Mask as Mask,
    RandomMask as RandomMask,
    Student as Student,
)
from .pretrain.stages import (
    EvaClip as EvaClip,
    EvaPretrain as EvaPretrain,
)
from .targets.parts import (
    Codes as Codes,
    EvaTeacher as EvaTeacher,
    Features as Features,
    Pixels as Pixels,
    Target as Target,
    TargetAugmentation as TargetAugmentation,
)
from .targets.stages import (
    EvaTargets as EvaTargets,
)
