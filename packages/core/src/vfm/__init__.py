"""vfm: one toolkit for the whole life of a vision foundation model.

A script or a notebook calls `vfm.run`, `vfm.curate`, `vfm.fit`, `vfm.embed`, `vfm.predict` and `vfm.evaluate`, each of
which is imported when it is first used. A plugin file starts with `import vfm` and uses `@vfm.hookimpl`, `vfm.Stage`,
`vfm.Ref` and the artifact types.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vfm.artifacts import (
    Artifact,
    ChoiceDataset,
    ClipCheckpoint,
    CuratedSubset,
    GeneratorCheckpoint,
    ImageDataset,
    LabeledDataset,
    Matches,
    Metadata,
    Metric,
    PairDataset,
    Pool,
    Report,
    VisionCheckpoint,
)
from vfm.config import Config, UserError
from vfm.events import Event
from vfm.hookspecs import hookimpl
from vfm.stage import Context, Preflight, Ref, Runtime, Stage

if TYPE_CHECKING:
    from vfm.api.curation import Curation, curate
    from vfm.api.embedding import Embeddings, embed
    from vfm.api.evaluation import EvaluationRun, evaluate
    from vfm.api.prediction import Predictions, Regions, predict
    from vfm.api.runs import Run, run
    from vfm.api.training import Fit, fit

__all__ = [
    "Artifact", "ChoiceDataset", "ClipCheckpoint", "Config", "Context", "CuratedSubset", "Curation", "Embeddings",
    "EvaluationRun", "Event", "Fit", "GeneratorCheckpoint", "ImageDataset", "LabeledDataset", "Matches", "Metadata",
    "Metric", "PairDataset", "Pool", "Predictions", "Preflight", "Ref", "Regions", "Report", "Run", "Runtime", "Stage",
    "UserError", "VisionCheckpoint", "curate", "embed", "evaluate", "fit", "hookimpl", "predict", "run",
]  # fmt: skip

# The functions for scripts and what they return, by module. They import torch, or many modules.
_ON_USE = {
    "vfm.api.curation": ("Curation", "curate"),
    "vfm.api.embedding": ("Embeddings", "embed"),
    "vfm.api.evaluation": ("EvaluationRun", "evaluate"),
    "vfm.api.prediction": ("Predictions", "Regions", "predict"),
    "vfm.api.runs": ("Run", "run"),
    "vfm.api.training": ("Fit", "fit"),
}


def __getattr__(name: str) -> Any:
    """Import a name on its first use.

    Raises:
        AttributeError: there is no such name.
        UserError: it needs a package that is not installed.
    """
    module = next((module for module, names in _ON_USE.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'vfm' has no attribute {name!r}")
    with import_module("vfm.plugins").naming_extras(f"vfm.{name}"):
        globals()[name] = found = getattr(import_module(module), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
