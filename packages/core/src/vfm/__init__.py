"""vfm: one toolkit for the whole life of a vision foundation model.

A plugin file starts with `import vfm` and uses `@vfm.hookimpl`, `vfm.Stage`, `vfm.Ref` and the artifact types.
"""

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

__all__ = [
    "Artifact", "ChoiceDataset", "ClipCheckpoint", "Config", "Context", "CuratedSubset", "Event", "GeneratorCheckpoint",
    "ImageDataset", "LabeledDataset", "Matches", "Metadata", "Metric", "PairDataset", "Pool", "Preflight", "Ref",
    "Report", "Runtime", "Stage", "UserError", "VisionCheckpoint", "hookimpl",
]  # fmt: skip
