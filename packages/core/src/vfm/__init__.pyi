from .api.curation import Curation as Curation, curate as curate
from .api.embedding import Embeddings as Embeddings, embed as embed
from .api.evaluation import EvaluationRun as EvaluationRun, evaluate as evaluate
from .api.prediction import Predictions as Predictions, Regions as Regions, predict as predict
from .api.runs import Run as Run, run as run
from .api.training import Fit as Fit, fit as fit
from .base import Config as Config, UserError as UserError
from .interfaces import (
    Artifact as Artifact,
    ChoiceDataset as ChoiceDataset,
    ClipCheckpoint as ClipCheckpoint,
    Context as Context,
    CuratedSubset as CuratedSubset,
    Event as Event,
    GeneratorCheckpoint as GeneratorCheckpoint,
    ImageDataset as ImageDataset,
    LabeledDataset as LabeledDataset,
    Matches as Matches,
    Metadata as Metadata,
    Metric as Metric,
    PairDataset as PairDataset,
    Pool as Pool,
    Preflight as Preflight,
    Ref as Ref,
    Report as Report,
    Runtime as Runtime,
    Stage as Stage,
    VisionCheckpoint as VisionCheckpoint,
    hookimpl as hookimpl,
)
