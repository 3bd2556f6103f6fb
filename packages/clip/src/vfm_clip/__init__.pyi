from .loss_parts import (
    ClipLoss as ClipLoss,
    Distillation as Distillation,
    DistinctInfoNce as DistinctInfoNce,
    InfoNce as InfoNce,
    LogitBias as LogitBias,
    Siglip as Siglip,
)
from .stages import (
    ClipLoading as ClipLoading,
    ClipTrain as ClipTrain,
    CropAugmentation as CropAugmentation,
    LogitScale as LogitScale,
    Tower as Tower,
    VisionTowerTraining as VisionTowerTraining,
)
