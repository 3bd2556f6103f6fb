"""Configuration of the stage that lists tars to stream into a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from vfm.data.samples.caption_templates import Texts
from vfm.data.samples.columns import check_names
from vfm.interfaces import Artifact, Stage, TarList
from vfm.storage.path_patterns import expand_paths


class Stream(Stage):
    """List tars of image-text pairs. A training then reads them in whole, without an index of their samples."""

    kind: Literal["data.stream"] = "data.stream"
    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="tars, local or remote: `{000..009}.tar`, a list or a folder. The members of a sample follow each"
        " other in its tar"
    )
    texts: Texts = Field(default={}, description="language: location of its captions, as in data.pairs (default: txt)")
    image_key: str | None = Field(None, description="extensions of the image, `jpg,png`")
    columns: Annotated[list[str], AfterValidator(check_names)] = Field(
        default=[], description="further values of each sample, fields of its json"
    )
    lanes: int = Field(
        8,
        ge=1,
        description="lanes that are read side by side, each 8 tars at a time. A multiple of processes x workers reads"
        " each tar once; otherwise several workers read the same tars",
    )
    lane_samples: int = Field(
        256,
        ge=1,
        description="samples that a lane gives before the next one follows: those of a process in a forward pass, or a"
        " divisor, with as many times more lanes",
    )

    makes: ClassVar[type[Artifact]] = TarList
    work: ClassVar[str] = "vfm.data.streaming.listing:list_tars"
    checks: ClassVar[str] = "vfm.data.streaming.listing:check_tars"

    def sources(self) -> Iterable[str]:
        """List the tars."""
        return expand_paths(self.path)
