from .api.curation import Curation as Curation
from .api.curation import curate as curate
from .api.embedding import Embeddings as Embeddings
from .api.embedding import embed as embed
from .api.evaluation import EvaluationRun as EvaluationRun
from .api.evaluation import evaluate as evaluate
from .api.prediction import Predictions as Predictions
from .api.prediction import Regions as Regions
from .api.prediction import predict as predict
from .api.runs import Run as Run
from .api.runs import run as run
from .api.training import Fit as Fit
from .api.training import fit as fit
from .base import Config as Config
from .base import UserError as UserError
from .interfaces import (
    Artifact as Artifact,
)
from .interfaces import (
    ChoiceDataset as ChoiceDataset,
)
from .interfaces import (
    ClipCheckpoint as ClipCheckpoint,
)
from .interfaces import (
    Context as Context,
)
from .interfaces import (
    CuratedSubset as CuratedSubset,
)
from .interfaces import (
    Event as Event,
)
from .interfaces import (
    GeneratorCheckpoint as GeneratorCheckpoint,
)
from .interfaces import (
    ImageDataset as ImageDataset,
)
from .interfaces import (
    LabeledDataset as LabeledDataset,
)
from .interfaces import (
    Matches as Matches,
)
from .interfaces import (
    Metadata as Metadata,
)
from .interfaces import (
    Metric as Metric,
)
from .interfaces import (
    PairDataset as PairDataset,
)
from .interfaces import (
    Pool as Pool,
)
from .interfaces import (
    Preflight as Preflight,
)
from .interfaces import (
    Ref as Ref,
)
from .interfaces import (
    Report as Report,
)
from .interfaces import (
    Runtime as Runtime,
)
from .interfaces import (
    Stage as Stage,
)
from .interfaces import (
    VisionCheckpoint as VisionCheckpoint,
)
from .interfaces import (
    hookimpl as hookimpl,
)
