"""Configurations of the stages that import, interpolate and export models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import Artifact, ClipCheckpoint, ExportedModel, GeneratorCheckpoint, VisionCheckpoint
from vfm.config import Config
from vfm.interfaces import AnyEvaluation, check_evaluations
from vfm.stage import Ref, Stage

HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"

Alpha = Annotated[float, Field(ge=0, le=1)]


class _ImportFile(Stage):
    """Options for reading a file of weights."""

    weights: Literal["ema", "raw"] = Field(
        "ema", description="of a file with both: the averaged weights, or those of the last step"
    )
    patch_resize: Literal["pinv", "bicubic"] = Field(
        "pinv",
        description="how patches and positions of an EVA file are resized: as in timm (pseudo-inverse), or as in the"
        " official scripts",
    )


class ImportClip(_ImportFile):
    """Import a pretrained CLIP model."""

    kind: Literal["models.clip"] = "models.clip"
    source: str | dict[str, Any] = Field(
        description="open_clip name or configuration (with pretrained), hf-hub:org/model, a folder in the layout of "
        "open_clip or Hugging Face, or an EVA-CLIP file"
    )
    pretrained: str | None = Field(None, description="open_clip's tag for the name, or a file of weights")
    part: Literal["both", "visual", "text"] = Field(
        "both", description="the tower to read from the file; the other one is initialised with seed 0"
    )

    text_from: Ref[ClipCheckpoint] | None = Field(
        None,
        description="model whose text tower, logit scale and preprocessing complete the vision tower that is read, such"
        " as the model that a tuned one was trained from",
    )

    makes: ClassVar[type[Artifact]] = ClipCheckpoint
    work: ClassVar[str] = "vfm.models.clip_import:import_clip_checkpoint"
    checks: ClassVar[str] = "vfm.models.clip_import:check_import_clip"
    costs: ClassVar[str] = "vfm.models.planned:import_cost"

    @model_validator(mode="after")
    def _one_text_tower(self) -> ImportClip:
        if self.text_from and self.part != "both":
            raise ValueError(f"text_from replaces the text tower: leave part out, got part: {self.part}")
        return self

    def sources(self) -> Iterable[str]:
        """Return the local folder and file that the names refer to."""
        return _local_paths(self.source, self.pretrained)


class ImportVision(_ImportFile):
    """Import a pretrained vision encoder."""

    kind: Literal["models.vision"] = "models.vision"
    source: str | dict[str, Any] = Field(
        description="timm name, optionally with a tag, hf-hub:org/model, a folder in timm's layout, or an EVA file; "
        "with pretrained, the architecture"
    )
    pretrained: str | None = Field(None, description="a file of weights for the architecture")

    makes: ClassVar[type[Artifact]] = VisionCheckpoint
    work: ClassVar[str] = "vfm.models.vision_import:import_vision_checkpoint"
    checks: ClassVar[str] = "vfm.models.vision_import:check_import_vision"
    costs: ClassVar[str] = "vfm.models.planned:import_cost"

    def sources(self) -> Iterable[str]:
        """Return the local folder and file that the names refer to."""
        return _local_paths(self.source, self.pretrained)


class ImportGenerator(Stage):
    """Import a pretrained diffusion model."""

    kind: Literal["models.generator"] = "models.generator"
    source: str = Field(description="a folder in diffusers' layout, or hf-hub:org/model, optionally with @revision")

    makes: ClassVar[type[Artifact]] = GeneratorCheckpoint
    work: ClassVar[str] = "vfm.models.generator_import:import_generator_checkpoint"
    checks: ClassVar[str] = "vfm.models.generator_import:check_import_generator"

    def sources(self) -> Iterable[str]:
        """Return the local folder."""
        return _local_paths(self.source, None)


class LineEvaluation(Config):
    """Evaluations of models along the line between two models."""

    tasks: list[AnyEvaluation] = Field([], description="evaluations, without `models`, of the interpolated models")
    alphas: list[Alpha] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0], min_length=1, description="positions of the evaluated models"
    )


class Interpolate(Stage):
    """Interpolate between a CLIP model and its fine-tuned version, which keeps more of the first model's abilities."""

    kind: Literal["models.interpolate"] = "models.interpolate"
    start: Ref[ClipCheckpoint] = Field(description="the model at alpha 0, e.g. the pretrained one")
    end: Ref[ClipCheckpoint] = Field(description="the model at alpha 1, e.g. the fine-tuned one")
    alpha: Alpha = Field(0.5, description="position of the saved model between start and end")
    evaluation: LineEvaluation = Field(LineEvaluation(), description="evaluations along the line, for a curve")

    makes: ClassVar[type[Artifact]] = ClipCheckpoint
    work: ClassVar[str] = "vfm.models.interpolation:interpolate_checkpoints"
    checks: ClassVar[str] = "vfm.models.interpolation:check_interpolation"
    moved: ClassVar[Mapping[str, str]] = {"evals": "evaluation.tasks", "alphas": "evaluation.alphas"}

    @model_validator(mode="after")
    def _evaluations_fit(self) -> Interpolate:
        check_evaluations(self.evaluation.tasks, self)
        return self


class Export(Stage):
    """Write a model in another library's layout, as `vfm export` does."""

    kind: Literal["models.export"] = "models.export"
    model: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="model to export")
    format: str = Field(
        "hf", description="timm, open_clip, hf (also the tower of LLaVA's own code), safetensors, onnx, eva or llava"
    )
    base: str | None = Field(
        None, description="for llava: folder of the LLaVA checkpoint, in transformers' layout, whose tower is replaced"
    )

    makes: ClassVar[type[Artifact]] = ExportedModel
    work: ClassVar[str] = "vfm.models.export_formats:export_checkpoint"
    checks: ClassVar[str] = "vfm.models.export_formats:check_export"

    def sources(self) -> Iterable[str]:
        """Return the folder of the LLaVA checkpoint."""
        return [self.base] if self.base else []


def _local_paths(source: str | dict[str, Any], pretrained: str | None) -> list[str]:
    """Return those of a stage's names that are files or folders on this machine."""
    names = [source.removeprefix(FOLDER_PREFIX)] if isinstance(source, str) else []
    return [name for name in (*names, pretrained) if name and Path(name).exists()]


STAGES: tuple[type[Stage], ...] = (ImportClip, ImportVision, ImportGenerator, Interpolate, Export)
