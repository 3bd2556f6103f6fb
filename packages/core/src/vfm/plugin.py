"""The public names for plugin authors: stages, parts, artifacts, panels, events, hooks. It imports no torch."""

from vfm.artifacts import (
    Artifact,
    ChoiceDataset,
    ClipCheckpoint,
    Comparison,
    CuratedSubset,
    GeneratorCheckpoint,
    ImageDataset,
    LabeledDataset,
    LinkTable,
    Matches,
    Metadata,
    Metric,
    PairDataset,
    Pool,
    Report,
    SampleCache,
    TaggedImages,
    VisionCheckpoint,
)
from vfm.config import Config, UserError, did_you_mean
from vfm.events import Event
from vfm.hookspecs import hookimpl
from vfm.interfaces import (
    AdamW,
    AnyEvaluation,
    CheckpointPolicy,
    ClipPostTraining,
    ClipTraining,
    ConstantSchedule,
    CosineSchedule,
    CropScale,
    Curation,
    Decay,
    Evaluation,
    EvaluationPolicy,
    Lamb,
    Loading,
    Optimizer,
    Portion,
    Schedule,
    Sgd,
    Training,
    TrainingRuntime,
    VisionPretraining,
    check_evaluations,
)
from vfm.panels import BarsPanel, ImagesPanel, LinesPanel, Panel, Picture, Series, TablePanel, TextPanel
from vfm.parts import Part
from vfm.stage import Context, Preempted, Preflight, Ref, Runtime, Seed, Stage

__all__ = [
    "AdamW", "AnyEvaluation", "Artifact", "BarsPanel", "CheckpointPolicy", "ChoiceDataset", "ClipCheckpoint",
    "ClipPostTraining", "ClipTraining", "Comparison", "Config", "ConstantSchedule", "Context", "CosineSchedule",
    "CropScale", "CuratedSubset", "Curation", "Decay", "Evaluation", "EvaluationPolicy", "Event", "GeneratorCheckpoint",
    "ImageDataset", "ImagesPanel", "LabeledDataset", "Lamb", "LinesPanel", "LinkTable", "Loading", "Matches",
    "Metadata", "Metric", "Optimizer", "PairDataset", "Panel", "Part", "Picture", "Pool", "Portion", "Preempted",
    "Preflight", "Ref", "Report", "Runtime", "SampleCache", "Schedule", "Seed", "Series", "Sgd", "Stage", "TablePanel",
    "TaggedImages", "TextPanel", "Training", "TrainingRuntime", "UserError", "VisionCheckpoint", "VisionPretraining",
    "check_evaluations", "did_you_mean", "hookimpl",
]  # fmt: skip
