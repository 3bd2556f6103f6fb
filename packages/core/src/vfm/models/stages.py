"""The stages that bring pretrained models in: what comes from outside enters a recipe by a stage of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint, GeneratorCheckpoint, VisionCheckpoint
from vfm.models.interpolate_stage import Interpolate
from vfm.models.sources import FOLDER
from vfm.stage import Context, Preflight, Stage

if TYPE_CHECKING:
    from vfm.models.eva_import import Reading


class _Import(Stage):
    """What it takes to read a file of weights."""

    weights: Literal["ema", "raw"] = Field(
        "ema", description="of a file that holds both: the averaged weights, or those of the last step"
    )
    patch_resize: Literal["pinv", "bicubic"] = Field(
        "pinv",
        description="how an EVA file's patches and positions come to another size: as timm (pseudo-inverse), or as the"
        " official scripts",
    )

    def _reading(self, part: Literal["both", "visual", "text"] = "both") -> Reading:
        from vfm.models.eva_import import Reading

        return Reading(part=part, ema=self.weights == "ema", patch_resize=self.patch_resize)


class ImportClip(_Import):
    """A pretrained CLIP model."""

    kind: Literal["models.clip"] = "models.clip"
    source: str | dict[str, Any] = Field(
        description="open_clip name or configuration (with pretrained), hf-hub:org/model, a folder in the layout of "
        "open_clip or Hugging Face, or a file of EVA-CLIP's"
    )
    pretrained: str | None = Field(None, description="open_clip's tag for the name, or a file of weights")
    part: Literal["both", "visual", "text"] = Field(
        "both", description="the tower to take from the file; the other one is drawn from seed 0"
    )

    def sources(self) -> Iterable[str]:
        """The local folder or file behind the names."""
        return _local(self.source, self.pretrained)

    def preflight(self, ctx: Preflight) -> None:
        """Checks names and tags."""
        from vfm.models.importing import check_clip_source

        check_clip_source(self.source, self.pretrained, self._reading(self.part))

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Fetches the weights where they are not local, and writes open_clip's layout."""
        from vfm.models.clip import save_clip, why_not_open_clip
        from vfm.models.importing import import_clip

        reading = self._reading(self.part)
        model = import_clip(self.source, self.pretrained, reading)
        _tell(ctx, reading)
        if why := why_not_open_clip(model):
            ctx.warn(why)
        return save_clip(model, ctx.directory)


class ImportVision(_Import):
    """A pretrained vision encoder."""

    kind: Literal["models.vision"] = "models.vision"
    source: str | dict[str, Any] = Field(
        description="timm name with a tag perhaps, hf-hub:org/model, a folder in timm's layout, or a file of EVA's; "
        "with pretrained the architecture"
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

        reading = self._reading()
        model = import_vision(self.source, self.pretrained, reading)
        _tell(ctx, reading)
        return save_vision(model, ctx.directory)


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


def _tell(ctx: Context, reading: Reading) -> None:
    """Shows what became of every key, where the file was read by our own rules."""
    report = reading.report
    if report.taken or report.renamed:
        ctx.log(f"keys of the file: {report.summary}")
        ctx.panel(report.panel("Weights imported"))


def _local(source: str | dict[str, Any], pretrained: str | None) -> list[str]:
    """Files and folders of this machine among a stage's names."""
    names = [source.removeprefix(FOLDER)] if isinstance(source, str) else []
    return [name for name in (*names, pretrained) if name and Path(name).exists()]


STAGES = (ImportClip, ImportVision, ImportGenerator, Interpolate)
