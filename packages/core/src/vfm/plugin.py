"""The public names for plugin authors: stages, parts, artifacts, panels, events, hooks. It imports no torch."""

from vfm import files, store_files
from vfm.artifacts import (
    AnnotatedImages,
    Artifact,
    ChoiceDataset,
    ClipCheckpoint,
    Comparison,
    CuratedSubset,
    DenseCheckpoint,
    GeneratorCheckpoint,
    ImageDataset,
    LabeledDataset,
    LinkTable,
    Matches,
    Metadata,
    Metric,
    PairDataset,
    Pool,
    QuestionDataset,
    Report,
    SampleCache,
    TaggedImages,
    TrainingState,
    VideoClassifier,
    VideoDataset,
    VisionCheckpoint,
)
from vfm.config import Config, UserError, did_you_mean, load_function, merge_settings
from vfm.costs import Cost
from vfm.events import Event
from vfm.hookspecs import hookimpl
from vfm.incidental import INCIDENTAL
from vfm.installation import how_to_install
from vfm.interfaces import (
    AdamW,
    AnyEvaluation,
    CheckpointPolicy,
    ClipPostTraining,
    ClipTraining,
    ConstantSchedule,
    ContinueFrom,
    CosineSchedule,
    CropScale,
    Curation,
    Decay,
    Evaluation,
    EvaluationPolicy,
    Lamb,
    Loading,
    LowRankSettings,
    Optimizer,
    Portion,
    Schedule,
    Sgd,
    TimmOptimizer,
    Training,
    TrainingRuntime,
    VisionPretraining,
    WarmupStableDecay,
    check_evaluations,
)
from vfm.panels import BarsPanel, ImagesPanel, LinesPanel, Panel, Picture, Series, TablePanel, TextPanel
from vfm.parts import Part
from vfm.scores import Difference, Evaluated, ModelResult, Score
from vfm.stage import Context, Preempted, Preflight, Ref, Runtime, Seed, Stage
from vfm.stages.evaluation import FeatureEvaluation, ModelEvaluation
from vfm.stages.evaluation.checks import check_class_names, check_dense_evaluations

__all__ = [
    "INCIDENTAL", "AdamW", "AnnotatedImages", "AnyEvaluation", "Artifact", "BarsPanel", "CheckpointPolicy",
    "ChoiceDataset", "ClipCheckpoint", "ClipPostTraining", "ClipTraining", "Comparison", "Config", "ConstantSchedule",
    "Context", "ContinueFrom", "CosineSchedule", "Cost", "CropScale", "CuratedSubset", "Curation", "Decay",
    "DenseCheckpoint", "Difference", "Evaluated", "Evaluation", "EvaluationPolicy", "Event", "FeatureEvaluation",
    "GeneratorCheckpoint", "ImageDataset", "ImagesPanel", "LabeledDataset", "Lamb", "LinesPanel", "LinkTable",
    "Loading", "LowRankSettings", "Matches", "Metadata", "Metric", "ModelEvaluation", "ModelResult", "Optimizer",
    "PairDataset", "Panel", "Part", "Picture", "Pool", "Portion", "Preempted", "Preflight", "QuestionDataset", "Ref",
    "Report", "Runtime", "SampleCache", "Schedule", "Score", "Seed", "Series", "Sgd", "Stage", "TablePanel",
    "TaggedImages", "TextPanel", "TimmOptimizer", "Training", "TrainingRuntime", "TrainingState", "UserError",
    "VideoClassifier", "VideoDataset", "VisionCheckpoint", "VisionPretraining", "WarmupStableDecay",
    "check_class_names", "check_dense_evaluations", "check_evaluations", "did_you_mean", "files", "hookimpl",
    "how_to_install", "load_function", "merge_settings", "store_files",
]  # fmt: skip
