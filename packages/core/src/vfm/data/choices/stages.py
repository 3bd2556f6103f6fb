"""Configuration of `data.choices`, which imports a caption-choice benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field

from vfm.interfaces import Artifact, ChoiceDataset, Ref, Seed, Stage


class ChoiceFiles(Stage):
    """Import a caption-choice benchmark as its authors publish it, or your own items in JSON lines.

    Supported are MMVP-VLM, Winoground, ColorSwap, NaturalBench-Retrieval, EqBen, What'sUp and SugarCrepe.
    """

    kind: Literal["data.choices"] = "data.choices"
    path: str = Field(
        description="MMVP-VLM's folder (Questions.csv and its images), the .json, .jsonl or .parquet file of another"
        " benchmark, a folder of such .json files, or your own .jsonl. Set it with --set 'NAME.path=...'"
    )
    image_root: str | None = Field(
        None,
        description="folder of the images, COCO val2017 for SugarCrepe. The default is the folder `images` next to the"
        " file, otherwise the file's own folder",
    )
    max_bad_fraction: float = Field(0.0, ge=0, le=1, description="tolerated fraction of bad items")

    makes: ClassVar[type[Artifact]] = ChoiceDataset
    work: ClassVar[str] = "vfm.data.choices.choice_files:import_choices"
    checks: ClassVar[str] = "vfm.data.choices.choice_files:check_choices"

    def sources(self) -> Iterable[str]:
        """List the folder or file, and the folder of its images."""
        return [self.path, self.image_root] if self.image_root else [self.path]


class PooledChoices(Stage):
    """Join several benchmarks to narrow the interval of the accuracy. The pattern of an item is its dataset's name.

    The mean over all items weighs a benchmark by its size, and `mean_over_patterns` weighs all benchmarks equally.
    """

    kind: Literal["data.pooled_choices"] = "data.pooled_choices"
    datasets: list[Ref[ChoiceDataset]] = Field(min_length=2, description="the benchmarks, of different names")
    max_items: int | None = Field(
        None, ge=1, description="largest number of items of each benchmark, drawn by the seed; default: all"
    )
    seed: Seed = Field(0, description="seed of the draw")

    makes: ClassVar[type[Artifact]] = ChoiceDataset
    work: ClassVar[str] = "vfm.data.choices.choice_files:pool_choices"
