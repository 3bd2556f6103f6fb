from .api.curation import Curation as Curation, curate as curate
from .api.embedding import Embeddings as Embeddings, embed as embed
from .api.evaluation import EvaluationRun as EvaluationRun, evaluate as evaluate
from .api.exporting import Export as Export, export as export
from .api.finetuning import distill as distill, finetune as finetune
from .api.fitting.training import Fit as Fit, fit as fit
from .api.listings import list_models as list_models, list_recipes as list_recipes, list_runs as list_runs
from .api.prediction import Predictions as Predictions, Regions as Regions, predict as predict
from .api.reports import draw_report as draw_report
from .api.runs import Run as Run, run as run
from .api.search import SearchResult as SearchResult, search as search
from .api.viewing import Views as Views, view as view
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
