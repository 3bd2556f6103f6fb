"""The stages by which a user's own files enter a recipe: pairs, choices; labelled images are in `labeled_stages`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ChoiceDataset, Pool
from vfm.config import UserError
from vfm.data import files
from vfm.data.spec import DatasetSpec
from vfm.stage import Context, Preflight, Stage

if TYPE_CHECKING:
    from vfm.data.index import Shard
    from vfm.data.layout import Layout


class ImageFiles(Stage):
    """What all stages share that index a user's images. The images stay where they are."""

    path: str | list[str] = Field(
        description="your data: tars as `{000..009}.tar`, a list or a folder of them, a folder of images, a folder of"
        " CLIP_benchmark's, a table (csv, tsv, jsonl, parquet), local or remote; set it with --set 'NAME.path=...'"
    )
    format: Literal["auto", "webdataset", "folder", "table", "parquet"] = Field(
        "auto", description="of the path; auto: by the names of its files"
    )
    image_key: str | None = Field(
        None, description="tars: the image's extensions, `jpg,png`; tables: the column of the image or its path"
    )
    image_root: str | None = Field(
        None, description="folder that a table's image paths start from and must not leave; default: the table's own"
    )
    num_samples: int | None = Field(None, ge=1, description="take the first so many; default: all")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more samples than this share are bad")
    verify: bool = Field(
        True, description="read shards that have no count beside them through, to leave bad samples out; false: count"
    )

    def sources(self) -> Iterable[str]:
        """The files behind `path`."""
        root = self.image_root
        return [*files.expand_paths(self.path), *([root] if root and root != "/" else [])]

    def layout(self) -> Layout:
        """What lies at `path`."""
        from vfm.data.layout import find_layout

        return find_layout(self.path, self.format, self.image_root)


class Pairs(ImageFiles):
    """Your own image-text pairs, several captions an image and in several languages perhaps."""

    kind: Literal["data.pairs"] = "data.pairs"
    texts: dict[str, str] = Field(
        default={},
        description="language: where its captions stand: `txt`, `txt.lines` (one a line), `txt.first` (the first line),"
        " `txt.WORD` (lines `WORD=...`), `json.FIELD` or a column; default: en from `txt` (`txt.lines` in a retrieval"
        " folder of CLIP_benchmark's), or from the table's caption column",
    )
    images: bool = Field(
        True,
        description="false: a table of captions alone (csv, tsv, jsonl, also .gz, parquet), to be curated; columns"
        " `uid` and `url` are carried along, and nothing can be trained on it",
    )
    columns: list[str] | None = Field(
        None, min_length=1, description="with images: false, names of a csv's or tsv's columns where it has no header"
    )

    version: ClassVar[int] = 2

    @model_validator(mode="after")
    def _columns_of_captions(self) -> Pairs:
        if self.columns and self.images:
            raise ValueError("columns names those of a table of captions alone: set images: false")
        return self

    def run(self, ctx: Context) -> Pool:
        """Indexes the shards; those that have no count beside them are read through, bad samples left out."""
        from vfm.data.indexing import Indexing
        from vfm.data.report import leave_panels

        if self.images:
            layout = self.layout()
            spec, num_shards = self._spec(layout), layout.num_shards
            shards = layout.shards(ctx.directory, spec)
        else:
            spec, shards, num_shards = self._captions(ctx)
        indexing = Indexing(ctx, spec, self.max_bad_fraction, self.num_samples, self.verify)
        count = indexing.run(ctx.directory, shards, num_shards)
        pool = Pool.create(
            ctx.directory, num_samples=count, bad_samples=dict(indexing.counts), languages=list(spec.texts)
        )
        leave_panels(ctx, pool, indexing.bad)
        return pool

    def preflight(self, ctx: Preflight) -> None:
        """Decodes a sample; of captions alone it finds the columns."""
        if not self.images:
            self._captions_at()
            return
        from vfm.data.indexing import first_sample

        layout = self.layout()
        first_sample(layout, self._spec(layout))

    def _spec(self, layout: Layout) -> DatasetSpec:
        return layout.with_defaults(DatasetSpec(image_key=self.image_key, texts=self.texts), labels=False)

    def _captions_at(self) -> tuple[list[str], DatasetSpec]:
        """The tables of captions, and where those stand in them."""
        from vfm.data.caption_tables import caption_spec

        paths = files.expand_paths(self.path)
        for path in paths:
            files.size_and_time(path)  # tells what is not there
        return paths, caption_spec(paths, self.texts, self.columns)

    def _captions(self, ctx: Context) -> tuple[DatasetSpec, Iterator[tuple[Shard, bool]], int | None]:
        from vfm.data.caption_tables import caption_shards

        paths, spec = self._captions_at()
        spec, shards = caption_shards(ctx.directory, paths, spec, self.columns)
        return spec, shards, None


class ChoiceFiles(Stage):
    """A caption-choice benchmark: MMVP-VLM, SugarCrepe, Winoground, or items of images, statements and truth."""

    kind: Literal["data.choices"] = "data.choices"
    path: str = Field(
        description="folder of MMVP-VLM (Questions.csv and its images); SugarCrepe's .json or a folder of them;"
        " Winoground's examples.jsonl or .parquet; a .jsonl of your own; set it with --set 'NAME.path=...'"
    )
    image_root: str | None = Field(
        None, description="folder of the pictures: COCO's val2017 for SugarCrepe; Winoground's default: `images` beside"
    )
    max_bad_fraction: float = Field(0.0, ge=0, le=1, description="stop when more items than this share are bad")

    def sources(self) -> Iterable[str]:
        """The folder or the file, and where its pictures are."""
        return [self.path, *([self.image_root] if self.image_root else [])]

    def run(self, ctx: Context) -> ChoiceDataset:
        """Copies the items, images included, into one small file."""
        from vfm.data.choice_files import read_choices
        from vfm.data.choices import write_choices

        dataset = write_choices(ctx.directory, read_choices(self.path, ctx.skip, self.image_root))
        bad = ctx.bad.total()
        if bad > self.max_bad_fraction * (dataset.num_pairs + bad) or not dataset.num_pairs:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in ctx.bad.items()) or "there are none"
            raise UserError(f"{self.name}: {bad} of {dataset.num_pairs + bad} items in {self.path} are bad: {reasons}")
        return dataset

    def preflight(self, ctx: Preflight) -> None:
        """Reads the first item."""
        from vfm.data.choice_files import read_choices

        bad: list[tuple[str, str]] = []
        if next(read_choices(self.path, lambda *told: bad.append(told), self.image_root), None) is None:
            raise UserError(f"{self.name}: no item in {self.path} can be used{f': {bad[0]}' if bad else ''}")


STAGES: list[type[Stage]] = [Pairs, ChoiceFiles]
