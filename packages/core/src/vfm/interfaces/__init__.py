"""The interfaces: abstract stages that fix inputs and output, so that one method can replace another in a recipe."""

from vfm.interfaces.evaluation import AnyEvaluation, Evaluation, check_evaluations, short_name
from vfm.interfaces.low_rank import LowRankSettings
from vfm.interfaces.methods import (
    ClipPostTraining,
    ClipTraining,
    CropScale,
    Curation,
    Portion,
    VisionPretraining,
)
from vfm.interfaces.schedules import ConstantSchedule, CosineSchedule, Schedule, WarmupStableDecay
from vfm.interfaces.timm_optimizer import TimmOptimizer
from vfm.interfaces.training import (
    AdamW,
    CheckpointPolicy,
    ContinueFrom,
    Decay,
    EvaluationPolicy,
    Lamb,
    Loading,
    Optimizer,
    Sgd,
    Training,
    TrainingRuntime,
)

__all__ = [
    "AdamW", "AnyEvaluation", "CheckpointPolicy", "ClipPostTraining", "ClipTraining", "ConstantSchedule",
    "ContinueFrom", "CosineSchedule", "CropScale", "Curation", "Decay", "Evaluation", "EvaluationPolicy", "Lamb",
    "Loading", "LowRankSettings", "Optimizer", "Portion", "Schedule", "Sgd", "TimmOptimizer", "Training",
    "TrainingRuntime", "VisionPretraining", "WarmupStableDecay", "check_evaluations", "short_name",
]  # fmt: skip
