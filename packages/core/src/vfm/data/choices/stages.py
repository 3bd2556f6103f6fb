"""Configuration of `data.choices`, which imports a caption-choice benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field

from vfm.interfaces import (
    Artifact,
    ChoiceDataset,
    Stage,
)


class ChoiceFiles(Stage):
    """Import a caption-choice benchmark: MMVP-VLM, SugarCrepe, Winoground, or your own items in JSON lines."""

    kind: Literal["data.choices"] = "data.choices"
    path: str = Field(
        description="MMVP-VLM folder (Questions.csv and its images), SugarCrepe .json file or a folder of them,"
        " Winoground examples.jsonl or .parquet, or your own .jsonl. Set it with --set 'NAME.path=...'"
    )
    image_root: str | None = Field(
        None,
        description="folder of the images, COCO val2017 for SugarCrepe. For Winoground the default is the folder"
        " `images` next to the file",
    )
    max_bad_fraction: float = Field(0.0, ge=0, le=1, description="tolerated fraction of bad items")

    makes: ClassVar[type[Artifact]] = ChoiceDataset
    work: ClassVar[str] = "vfm.data.choices.choice_files:import_choices"
    checks: ClassVar[str] = "vfm.data.choices.choice_files:check_choices"

    def sources(self) -> Iterable[str]:
        """List the folder or file, and the folder of its images."""
        return [self.path, self.image_root] if self.image_root else [self.path]


STAGES: tuple[type[Stage], ...] = (ChoiceFiles,)
