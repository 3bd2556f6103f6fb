from .artifacts import (
    FACTS_FILE as FACTS_FILE,
)
from .artifacts import (
    MANIFEST_FILE as MANIFEST_FILE,
)
from .artifacts import (
    AnnotatedImages as AnnotatedImages,
)
from .artifacts import (
    Artifact as Artifact,
)
from .artifacts import (
    ChoiceDataset as ChoiceDataset,
)
from .artifacts import (
    ClipCheckpoint as ClipCheckpoint,
)
from .artifacts import (
    Comparison as Comparison,
)
from .artifacts import (
    CuratedSubset as CuratedSubset,
)
from .artifacts import (
    DenseCheckpoint as DenseCheckpoint,
)
from .artifacts import (
    ExportedModel as ExportedModel,
)
from .artifacts import (
    GeneratorCheckpoint as GeneratorCheckpoint,
)
from .artifacts import (
    ImageDataset as ImageDataset,
)
from .artifacts import (
    LabeledDataset as LabeledDataset,
)
from .artifacts import (
    LinkTable as LinkTable,
)
from .artifacts import (
    Matches as Matches,
)
from .artifacts import (
    Metadata as Metadata,
)
from .artifacts import (
    Metric as Metric,
)
from .artifacts import (
    PairDataset as PairDataset,
)
from .artifacts import (
    Pool as Pool,
)
from .artifacts import (
    QuestionDataset as QuestionDataset,
)
from .artifacts import (
    Report as Report,
)
from .artifacts import (
    SampleCache as SampleCache,
)
from .artifacts import (
    TaggedImages as TaggedImages,
)
from .artifacts import (
    TrainingState as TrainingState,
)
from .artifacts import (
    VideoClassifier as VideoClassifier,
)
from .artifacts import (
    VideoDataset as VideoDataset,
)
from .artifacts import (
    VisionCheckpoint as VisionCheckpoint,
)
from .costs import Cost as Cost
from .costs import Memory as Memory
from .costs import seconds as seconds
from .dense import (
    DensePredictor as DensePredictor,
)
from .dense import (
    DenseTask as DenseTask,
)
from .dense import (
    Instances as Instances,
)
from .dense import (
    ObjectPredictor as ObjectPredictor,
)
from .dense import (
    PanopticMap as PanopticMap,
)
from .dense import (
    PanopticPredictor as PanopticPredictor,
)
from .dense import (
    SemanticPredictor as SemanticPredictor,
)
from .evaluation import (
    AnyEvaluation as AnyEvaluation,
)
from .evaluation import (
    Evaluation as Evaluation,
)
from .evaluation import (
    check_evaluations as check_evaluations,
)
from .evaluation import (
    short_name as short_name,
)
from .events import Event as Event
from .events import damaged_lines as damaged_lines
from .events import stamped as stamped
from .hookspecs import hookimpl as hookimpl
from .methods import (
    ClipPostTraining as ClipPostTraining,
)
from .methods import (
    ClipTraining as ClipTraining,
)
from .methods import (
    CropScale as CropScale,
)
from .methods import (
    Curation as Curation,
)
from .methods import (
    Portion as Portion,
)
from .methods import (
    VisionPretraining as VisionPretraining,
)
from .panels import (
    BarsPanel as BarsPanel,
)
from .panels import (
    ImagesPanel as ImagesPanel,
)
from .panels import (
    LinesPanel as LinesPanel,
)
from .panels import (
    Panel as Panel,
)
from .panels import (
    Picture as Picture,
)
from .panels import (
    Series as Series,
)
from .panels import (
    TablePanel as TablePanel,
)
from .panels import (
    TextPanel as TextPanel,
)
from .panels import (
    load_panel as load_panel,
)
from .panels import (
    load_panels as load_panels,
)
from .panels import (
    panel_files as panel_files,
)
from .plugins import (
    extra_of as extra_of,
)
from .plugins import (
    find_predictor as find_predictor,
)
from .plugins import (
    load_plugins as load_plugins,
)
from .plugins import (
    naming_extras as naming_extras,
)
from .plugins import (
    origin_of as origin_of,
)
from .plugins import (
    stage_types as stage_types,
)
from .plugins import (
    unknown_kind as unknown_kind,
)
from .schedules import (
    ConstantSchedule as ConstantSchedule,
)
from .schedules import (
    CosineSchedule as CosineSchedule,
)
from .schedules import (
    PolySchedule as PolySchedule,
)
from .schedules import (
    Schedule as Schedule,
)
from .schedules import (
    StepSchedule as StepSchedule,
)
from .schedules import (
    WarmupStableDecay as WarmupStableDecay,
)
from .scores import Difference as Difference
from .scores import Evaluated as Evaluated
from .scores import ModelResult as ModelResult
from .scores import Score as Score
from .stage import (
    Context as Context,
)
from .stage import (
    LeftToFirst as LeftToFirst,
)
from .stage import (
    Preempted as Preempted,
)
from .stage import (
    Preflight as Preflight,
)
from .stage import (
    Ref as Ref,
)
from .stage import (
    Runtime as Runtime,
)
from .stage import (
    Seed as Seed,
)
from .stage import (
    Stage as Stage,
)
from .stage import (
    refs as refs,
)
from .timm_optimizer import TimmOptimizer as TimmOptimizer
from .trained import (
    AllWeights as AllWeights,
)
from .trained import (
    FrozenWeights as FrozenWeights,
)
from .trained import (
    LastBlocks as LastBlocks,
)
from .trained import (
    Lora as Lora,
)
from .trained import (
    Trained as Trained,
)
from .training import (
    AdamW as AdamW,
)
from .training import (
    CheckpointPolicy as CheckpointPolicy,
)
from .training import (
    ContinueFrom as ContinueFrom,
)
from .training import (
    Decay as Decay,
)
from .training import (
    EvaluationPolicy as EvaluationPolicy,
)
from .training import (
    Lamb as Lamb,
)
from .training import (
    Loading as Loading,
)
from .training import (
    Optimizer as Optimizer,
)
from .training import (
    Sgd as Sgd,
)
from .training import (
    Training as Training,
)
from .training import (
    TrainingRuntime as TrainingRuntime,
)
from .video import VideoPredictor as VideoPredictor
