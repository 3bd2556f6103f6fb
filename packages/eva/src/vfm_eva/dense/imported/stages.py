"""Configuration of `eva.import_dense`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from vfm.plugin import AnnotatedImages, Artifact, DenseCheckpoint, Ref, Stage


class ImportDense(Stage):
    """Import a detector or segmenter in transformers' layout, such as EoMT, Mask2Former, SegFormer or RT-DETR."""

    makes: ClassVar[type[Artifact]] = DenseCheckpoint
    work: ClassVar[str] = "vfm_eva.dense.imported.transformers_models:import_dense"
    checks: ClassVar[str] = "vfm_eva.dense.imported.transformers_models:check_import_dense"
    predictor: ClassVar[str] = "vfm_eva.dense.imported.transformers_predictors:load_model"

    kind: Literal["eva.import_dense"] = "eva.import_dense"
    source: str = Field(description="a folder in transformers' layout, or hf-hub:org/model, optionally with @revision")
    data: Ref[AnnotatedImages] | None = Field(
        None, description="images whose classes the model gets, by their names; default: the model's own classes"
    )
    renamed: dict[str, str] = Field({}, description="class of `data` by the model's name for it, where they differ")
    task: Literal["semantic", "instance", "panoptic"] = Field(
        "semantic", description="what a model of queries was trained for; other models have one task"
    )

    def sources(self) -> Iterable[str]:
        """List the local folder."""
        return [self.source] if Path(self.source).is_dir() else []
