"""Configurations of the stages that import and export models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.base import INCIDENTAL
from vfm.interfaces import Artifact, ClipCheckpoint, ExportedModel, GeneratorCheckpoint, Ref, Stage, VisionCheckpoint

HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"
NO_WEIGHTS = "none"  # as `pretrained`: random weights of seed 0, and no download


def source_and_tag(word: str) -> tuple[str, str | None]:
    """Split `ViT-B-32,openai` into the source and the rest as `pretrained`. A path that exists is a source."""
    source, _, tag = (word, "", "") if Path(word).exists() else word.partition(",")
    return source, tag or None


class _ImportFile(Stage):
    """Base of the stages that read a file of weights."""

    weights: Literal["ema", "raw"] = Field(
        "ema", description="weights to read from a file with both: averaged (ema) or of the last step (raw)"
    )
    patch_resize: Literal["pinv", "bicubic"] = Field(
        "pinv",
        description="how patches and positions of an EVA file are resized: as in timm (pinv, pseudo-inverse), or as in"
        " the official scripts (bicubic)",
    )


Compare = Annotated[bool, INCIDENTAL]
COMPARE = (
    "compare ids, pixels and features of eight fixed inputs with the library that wrote the source (open_clip, timm, or"
    " transformers, where it is installed); the differences are in the manifest"
)


class ImportClip(_ImportFile):
    """Import a pretrained CLIP model."""

    kind: Literal["models.clip"] = "models.clip"
    source: str | dict[str, Any] = Field(
        description="open_clip name or configuration (with pretrained), hf-hub:org/model, a folder in the layout of "
        "open_clip or Hugging Face, or an EVA-CLIP file"
    )
    pretrained: str | None = Field(
        None, description="open_clip's tag for the name, a file of weights, or none: random weights"
    )
    part: Literal["both", "visual", "text"] = Field(
        "both", description="tower to read from the file, while the other tower is initialised with seed 0"
    )

    text_from: Ref[ClipCheckpoint] | None = Field(
        None,
        description="model whose text tower, logit scale and preprocessing complete the vision tower from the file,"
        " such as the model that a tuned one was trained from",
    )

    compare: Compare = Field(True, description=COMPARE)

    makes: ClassVar[type[Artifact]] = ClipCheckpoint
    work: ClassVar[str] = "vfm.models.interchange.clip_import:import_clip_checkpoint"
    checks: ClassVar[str] = "vfm.models.interchange.clip_import:check_import_clip"
    costs: ClassVar[str] = "vfm.models.vision.planned:import_cost"

    @model_validator(mode="after")
    def _one_text_tower(self) -> ImportClip:
        if self.text_from and self.part != "both":
            raise ValueError(f"text_from replaces the text tower: leave part out, got part: {self.part}")
        return self

    def sources(self) -> Iterable[str]:
        """List the local folder and file that the names refer to."""
        return _local_paths(self.source, self.pretrained)


class ImportVision(_ImportFile):
    """Import a pretrained vision encoder."""

    kind: Literal["models.vision"] = "models.vision"
    source: str | dict[str, Any] = Field(
        description="timm name, optionally with a tag, hf-hub:org/model, a folder in the layout of timm or transformers"
        " (ViT, DINOv2, DINOv3, towers of SigLIP and CLIP), or an EVA file. With pretrained, the architecture"
    )
    pretrained: str | None = Field(None, description="a file of weights for the architecture, or none: random weights")

    compare: Compare = Field(True, description=COMPARE)

    makes: ClassVar[type[Artifact]] = VisionCheckpoint
    work: ClassVar[str] = "vfm.models.interchange.vision_import:import_vision_checkpoint"
    checks: ClassVar[str] = "vfm.models.interchange.vision_import:check_import_vision"
    costs: ClassVar[str] = "vfm.models.vision.planned:import_cost"

    def sources(self) -> Iterable[str]:
        """List the local folder and file that the names refer to."""
        return _local_paths(self.source, self.pretrained)


class ImportGenerator(Stage):
    """Import a pretrained diffusion model."""

    kind: Literal["models.generator"] = "models.generator"
    source: str = Field(description="a folder in diffusers' layout, or hf-hub:org/model, optionally with @revision")

    makes: ClassVar[type[Artifact]] = GeneratorCheckpoint
    work: ClassVar[str] = "vfm.models.generator.generator_import:import_generator_checkpoint"
    checks: ClassVar[str] = "vfm.models.generator.generator_import:check_import_generator"

    def sources(self) -> Iterable[str]:
        """List the local folder."""
        return _local_paths(self.source, None)


class Export(Stage):
    """Write a model in another library's layout, as `vfm export` does."""

    kind: Literal["models.export"] = "models.export"
    model: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="model to export")
    format: str = Field(
        "hf", description="timm, open_clip, hf (also the tower of LLaVA's own code), safetensors, onnx, eva or llava"
    )
    base: str | None = Field(
        None, description="for llava: folder of a LLaVA checkpoint in transformers' layout, whose tower is replaced"
    )

    makes: ClassVar[type[Artifact]] = ExportedModel
    work: ClassVar[str] = "vfm.models.interchange.export_formats:export_checkpoint"
    checks: ClassVar[str] = "vfm.models.interchange.export_formats:check_export"

    def sources(self) -> Iterable[str]:
        """List the folder of the LLaVA checkpoint."""
        return [self.base] if self.base else []


def _local_paths(source: str | dict[str, Any], pretrained: str | None) -> list[str]:
    """List the names of a stage that are files or folders on this machine."""
    names = [source.removeprefix(FOLDER_PREFIX)] if isinstance(source, str) else []
    weights = None if pretrained == NO_WEIGHTS else pretrained
    return [name for name in (*names, weights) if name and Path(name).exists()]
