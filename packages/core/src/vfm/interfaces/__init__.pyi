from .artifact import (
    FACTS_FILE as FACTS_FILE,
    MANIFEST_FILE as MANIFEST_FILE,
    Artifact as Artifact,
)
from .checkpoints import (
    ClipCheckpoint as ClipCheckpoint,
    DenseCheckpoint as DenseCheckpoint,
    ExportedModel as ExportedModel,
    GeneratorCheckpoint as GeneratorCheckpoint,
    TrainingState as TrainingState,
    VideoClassifier as VideoClassifier,
    VisionCheckpoint as VisionCheckpoint,
)
from .costs import (
    PEAK_TFLOPS as PEAK_TFLOPS,
    UTILISATION as UTILISATION,
    Cost as Cost,
    PeakMemory as PeakMemory,
    seconds as seconds,
)
from .datasets import (
    AnnotatedImages as AnnotatedImages,
    ChoiceDataset as ChoiceDataset,
    CuratedSubset as CuratedSubset,
    ImageDataset as ImageDataset,
    LabeledDataset as LabeledDataset,
    LinkTable as LinkTable,
    Matches as Matches,
    Metadata as Metadata,
    PairDataset as PairDataset,
    Pool as Pool,
    QuestionDataset as QuestionDataset,
    SampleCache as SampleCache,
    TaggedImages as TaggedImages,
    TarList as TarList,
    VideoDataset as VideoDataset,
)
from .evaluation import (
    AnyEvaluation as AnyEvaluation,
    Evaluation as Evaluation,
    check_evaluations as check_evaluations,
    short_name as short_name,
)
from .events import Event as Event
from .hookspecs import hookimpl as hookimpl
from .loading import ColumnSampler as ColumnSampler, Loading as Loading
from .methods import (
    ClipPostTraining as ClipPostTraining,
    ClipTraining as ClipTraining,
    CropScale as CropScale,
    PoolCuration as PoolCuration,
    Portion as Portion,
    VisionPretraining as VisionPretraining,
)
from .panels import (
    BarsPanel as BarsPanel,
    ImagesPanel as ImagesPanel,
    LinesPanel as LinesPanel,
    Panel as Panel,
    PanelImage as PanelImage,
    Series as Series,
    TablePanel as TablePanel,
    TextPanel as TextPanel,
    load_panel as load_panel,
    load_panels as load_panels,
    panel_files as panel_files,
)
from .plugins import (
    extra_of as extra_of,
    find_predictor as find_predictor,
    import_stages as import_stages,
    load_plugins as load_plugins,
    naming_extras as naming_extras,
    origin_of as origin_of,
    stage_types as stage_types,
    unknown_kind as unknown_kind,
)
from .report import (
    Comparison as Comparison,
    Metric as Metric,
    Report as Report,
)
from .schedules import (
    ConstantSchedule as ConstantSchedule,
    CosineSchedule as CosineSchedule,
    PolySchedule as PolySchedule,
    Schedule as Schedule,
    StepSchedule as StepSchedule,
    WarmupStableDecay as WarmupStableDecay,
)
from .scores import Difference as Difference, Evaluated as Evaluated, ModelResult as ModelResult, Score as Score
from .stage import (
    Context as Context,
    LeftToFirst as LeftToFirst,
    Preempted as Preempted,
    Preflight as Preflight,
    Ref as Ref,
    Runtime as Runtime,
    Seed as Seed,
    Stage as Stage,
    refs as refs,
)
from .timm_optimizer import TimmOptimizer as TimmOptimizer
from .trained import (
    AllWeights as AllWeights,
    FrozenWeights as FrozenWeights,
    LastBlocks as LastBlocks,
    Lora as Lora,
    Trained as Trained,
)
from .training import (
    AdamW as AdamW,
    CheckpointPolicy as CheckpointPolicy,
    ContinueFrom as ContinueFrom,
    Decay as Decay,
    EvaluationPolicy as EvaluationPolicy,
    LambConfig as LambConfig,
    Optimizer as Optimizer,
    Sgd as Sgd,
    Training as Training,
)
from .training_runtime import TrainingRuntime as TrainingRuntime
