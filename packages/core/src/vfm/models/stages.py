"""The stages that bring pretrained models in: what comes from outside enters a recipe by a stage of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint, GeneratorCheckpoint, VisionCheckpoint
from vfm.models.sources import FOLDER
from vfm.stage import Context, Preflight, Stage


class ImportClip(Stage):
    """A pretrained CLIP model."""

    kind: Literal["models.clip"] = "models.clip"
    source: str | dict[str, Any] = Field(
        description="open_clip name or configuration (with pretrained), hf-hub:org/model, or a folder in the layout of "
        "open_clip or Hugging Face"
    )
    pretrained: str | None = Field(None, description="open_clip's tag for the name, or a file of weights")

    def sources(self) -> Iterable[str]:
        """The local folder or file behind the names."""
        return _local(self.source, self.pretrained)

    def preflight(self, ctx: Preflight) -> None:
        """Checks names and tags."""
        from vfm.models.importing import check_clip_source

        check_clip_source(self.source, self.pretrained)

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Fetches the weights where they are not local, and writes open_clip's layout."""
        from vfm.models.clip import save_clip
        from vfm.models.importing import import_clip

        return save_clip(import_clip(self.source, self.pretrained), ctx.directory)


class ImportVision(Stage):
    """A pretrained vision encoder."""

    kind: Literal["models.vision"] = "models.vision"
    source: str | dict[str, Any] = Field(
        description="timm name with a tag perhaps, hf-hub:org/model, or a folder in timm's layout; with pretrained the "
        "architecture"
    )
    pretrained: str | None = Field(None, description="a file of weights for the architecture")

    def sources(self) -> Iterable[str]:
        """The local folder or file behind the names."""
        return _local(self.source, self.pretrained)

    def preflight(self, ctx: Preflight) -> None:
        """Checks names."""
        from vfm.models.importing import check_vision_source

        check_vision_source(self.source, self.pretrained)

    def run(self, ctx: Context) -> VisionCheckpoint:
        """Fetches the weights where they are not local, and writes timm's layout."""
        from vfm.models.importing import import_vision
        from vfm.models.vision import save_vision

        return save_vision(import_vision(self.source, self.pretrained), ctx.directory)


class ImportGenerator(Stage):
    """A pretrained diffusion model."""

    kind: Literal["models.generator"] = "models.generator"
    source: str = Field(description="a folder in diffusers' layout, or hf-hub:org/model")

    def sources(self) -> Iterable[str]:
        """The local folder."""
        return _local(self.source, None)

    def run(self, ctx: Context) -> GeneratorCheckpoint:
        """Fetches the model where it is not local, and copies it."""
        from vfm.models.generator import import_generator

        return import_generator(self.source, ctx.directory)


def _local(source: str | dict[str, Any], pretrained: str | None) -> list[str]:
    """Files and folders of this machine among a stage's names."""
    names = [source.removeprefix(FOLDER)] if isinstance(source, str) else []
    return [name for name in (*names, pretrained) if name and Path(name).exists()]


STAGES = (ImportClip, ImportVision, ImportGenerator)
