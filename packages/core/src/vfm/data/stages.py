"""The stages by which a user's own files enter a recipe: pairs, labelled images, choices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vfm.artifacts import ChoiceDataset, LabeledDataset, Pool
from vfm.config import UserError
from vfm.data import files
from vfm.data.spec import DatasetSpec
from vfm.data.templates import check_templates
from vfm.stage import Context, Preflight, Stage

if TYPE_CHECKING:
    from vfm.data.index import Shard
    from vfm.data.layout import Layout


class ImageFiles(Stage):
    """What all stages share that index a user's images. The images stay where they are."""

    path: str | list[str] = Field(
        description="your data: tars as `{000..009}.tar`, a list or a folder of them, a folder of images, a table"
        " (csv, tsv, jsonl, parquet), local or remote; set it with --set 'NAME.path=...'"
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
        description="language: where its captions stand: `txt`, `txt.lines`, `json.FIELD` or a column;"
        " default: en from `txt`, or from the table's caption column",
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


class Labeled(ImageFiles):
    """Your own labelled images: class folders, tars with `cls`, tables, or a torchvision data set by name."""

    kind: Literal["data.labeled"] = "data.labeled"
    torchvision: str | None = Field(
        None, description="name of a torchvision data set (FashionMNIST, EuroSAT, ...) whose files lie at `path`"
    )
    split: str = Field("test", description="of the torchvision data set")
    label_key: str | None = Field(
        None, description="where the class stands: `cls`, `json.FIELD` or a column; class folders need none"
    )
    class_names: list[str] = Field(
        default=[], description="in the order of the labels; default: the folders', the table's, or classnames.txt"
    )
    templates: list[str] = Field(default=[], description="prompts with a `{}`; default: `a photo of a {}.`")

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: list[str]) -> list[str]:
        return check_templates(templates)

    @model_validator(mode="after")
    def _one_place(self) -> Labeled:
        if self.torchvision and not isinstance(self.path, str):
            raise ValueError("path must be one folder where torchvision is given")
        return self

    def run(self, ctx: Context) -> LabeledDataset:
        """Indexes the images and their labels."""
        from vfm.data.indexing import Indexing
        from vfm.data.report import leave_panels

        spec, shards, num_shards, templates = self._parts(ctx)
        indexing = Indexing(ctx, spec, self.max_bad_fraction, self.num_samples, self.verify)
        count = indexing.run(ctx.directory, shards, num_shards)
        dataset = LabeledDataset.create(
            ctx.directory,
            num_samples=count,
            bad_samples=dict(indexing.counts),
            class_names=spec.class_names,
            **({"templates": templates} if templates else {}),
        )
        leave_panels(ctx, dataset, indexing.bad)
        return dataset

    def preflight(self, ctx: Preflight) -> None:
        """Decodes a sample and reads the templates, or opens the torchvision data set."""
        if self.torchvision:
            from vfm.data.torchvision_sets import open_torchvision

            open_torchvision(self.torchvision, str(self.path), self.split)
            return
        from vfm.data.indexing import first_sample

        layout = self.layout()
        self._templates(layout)
        first_sample(layout, self._spec(layout))

    def _parts(self, ctx: Context) -> tuple[DatasetSpec, Any, int | None, list[str]]:
        from vfm.data import torchvision_sets

        if self.torchvision:
            dataset = torchvision_sets.open_torchvision(self.torchvision, str(self.path), self.split)
            names = self.class_names or torchvision_sets.torchvision_classes(dataset, self.torchvision)
            spec = torchvision_sets.PACKED.model_copy(update={"class_names": names})
            shards = ((shard, True) for shard in torchvision_sets.torchvision_shards(dataset, ctx.directory))
            return spec, shards, None, self.templates
        layout = self.layout()
        spec = self._spec(layout)
        return spec, layout.shards(ctx.directory, spec), layout.num_shards, self._templates(layout)

    def _templates(self, layout: Layout) -> list[str]:
        from vfm.data.labels import TEMPLATES_FILE, lines_beside

        return self.templates or check_templates(lines_beside(layout, TEMPLATES_FILE), TEMPLATES_FILE)

    def _spec(self, layout: Layout) -> DatasetSpec:
        from vfm.data.labels import find_class_names

        spec = layout.with_defaults(DatasetSpec(image_key=self.image_key, label_key=self.label_key), labels=True)
        return spec.model_copy(update={"class_names": self.class_names or find_class_names(layout, spec.label_key)})


class ChoiceFiles(Stage):
    """A caption-choice benchmark: MMVP-VLM's folder, or items of images, statements and truth in JSON lines."""

    kind: Literal["data.choices"] = "data.choices"
    path: str = Field(
        description="folder of MMVP-VLM (Questions.csv and its images), or a .jsonl; set it with --set 'NAME.path=...'"
    )
    max_bad_fraction: float = Field(0.0, ge=0, le=1, description="stop when more items than this share are bad")

    def sources(self) -> Iterable[str]:
        """The folder or the file."""
        return [self.path]

    def run(self, ctx: Context) -> ChoiceDataset:
        """Copies the items, images included, into one small file."""
        from vfm.data.choice_files import read_choices
        from vfm.data.choices import write_choices

        dataset = write_choices(ctx.directory, read_choices(self.path, ctx.skip))
        bad = ctx.bad.total()
        if bad > self.max_bad_fraction * (dataset.num_pairs + bad) or not dataset.num_pairs:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in ctx.bad.items()) or "there are none"
            raise UserError(f"{self.name}: {bad} of {dataset.num_pairs + bad} items in {self.path} are bad: {reasons}")
        return dataset

    def preflight(self, ctx: Preflight) -> None:
        """Reads the first item."""
        from vfm.data.choice_files import read_choices

        bad: list[tuple[str, str]] = []
        if next(read_choices(self.path, lambda *told: bad.append(told)), None) is None:
            raise UserError(f"{self.name}: no item in {self.path} can be used{f': {bad[0]}' if bad else ''}")


STAGES: list[type[Stage]] = [Pairs, Labeled, ChoiceFiles]
