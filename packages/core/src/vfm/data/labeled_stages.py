"""The stages by which labelled images enter a recipe: one class each, several labels each, scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from vfm.artifacts import ImageDataset, LabeledDataset, TaggedImages
from vfm.config import UserError
from vfm.data.spec import DatasetSpec
from vfm.data.stages import ImageFiles
from vfm.data.templates import check_templates
from vfm.stage import Context, Preflight, Stage

if TYPE_CHECKING:
    from vfm.data.layout import Layout


class _Named(ImageFiles):
    """What one class and several labels share: their names, and the prompts around those."""

    split: str = Field("test", description="of a folder of CLIP_benchmark's, or of the torchvision data set")
    class_names: list[str] = Field(
        default=[], description="in the order of the labels; default: the folders', the table's, or classnames.txt"
    )
    templates: list[str] = Field(
        default=[],
        description="prompts with a `{}`; default: those of zeroshot_classification_templates.txt, else"
        " `a photo of a {}.`",
    )
    names_of: str | None = Field(
        None,
        description="take class names and templates, where they are not given, from the package clip_benchmark's for"
        " this data set: `mnist`, or in another language `imagenet1k/ar`; pip install 'vfm-core[clip-benchmark]'",
    )

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: list[str]) -> list[str]:
        return check_templates(templates)

    def sources(self) -> Iterable[str]:
        """The files behind `path`, those beside them that name the classes, and the package's lists."""
        from vfm.data.benchmark_folder import CLASS_NAMES_FILE, TEMPLATES_FILE, file_beside
        from vfm.data.benchmark_names import list_files

        found = [*super().sources()]
        beside = [file_beside(found[0], name) for name in (CLASS_NAMES_FILE, TEMPLATES_FILE)]
        return [*found, *(file for file in beside if file), *(list_files(self.names_of) if self.names_of else ())]

    def layout(self) -> Layout:
        """What lies at `path`."""
        from vfm.data.layout import find_layout

        return find_layout(self.path, self.format, self.image_root, self.split)

    def _words(self, layout: Layout | None) -> tuple[list[str], list[str]]:
        """Class names (none: the data set's own) and templates (none: the default), as far as they are told."""
        from vfm.data.benchmark_folder import TEMPLATES_FILE, lines_beside
        from vfm.data.benchmark_names import names_and_templates

        names, templates = names_and_templates(self.names_of) if self.names_of else ([], [])
        written = lines_beside(layout.paths[0], TEMPLATES_FILE) if layout else []
        beside = check_templates([line for line in written if line], TEMPLATES_FILE)
        return self.class_names or names, self.templates or templates or beside


class Labeled(_Named):
    """Your own labelled images: class folders, tars with `cls`, tables, or a torchvision data set by name."""

    kind: Literal["data.labeled"] = "data.labeled"
    torchvision: str | None = Field(
        None, description="name of a torchvision data set (FashionMNIST, EuroSAT, ...) whose files lie at `path`"
    )
    label_key: str | None = Field(
        None, description="where the class stands: `cls`, `json.FIELD` or a column; class folders need none"
    )

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

            self._torchvision_names(open_torchvision(self.torchvision, str(self.path), self.split))
            return
        from vfm.data.indexing import first_sample

        layout = self.layout()
        first_sample(layout, self._spec(layout))

    def _parts(self, ctx: Context) -> tuple[DatasetSpec, Any, int | None, list[str]]:
        if self.torchvision:
            from vfm.data import torchvision_sets

            dataset = torchvision_sets.open_torchvision(self.torchvision, str(self.path), self.split)
            spec = torchvision_sets.PACKED.model_copy(update={"class_names": self._torchvision_names(dataset)})
            shards = ((shard, True) for shard in torchvision_sets.torchvision_shards(dataset, ctx.directory))
            return spec, shards, None, self._words(None)[1]
        layout = self.layout()
        spec = self._spec(layout)
        return spec, layout.shards(ctx.directory, spec), layout.num_shards, self._words(layout)[1]

    def _torchvision_names(self, dataset: Any) -> list[str]:
        from vfm.data.torchvision_sets import torchvision_classes

        names, _ = self._words(None)
        if not names:
            return torchvision_classes(dataset, str(self.torchvision))
        own = getattr(dataset, "classes", None) or names
        if len(names) != len(own):
            raise UserError(f"{len(names)} class names for torchvision's {self.torchvision}; it has {len(own)} classes")
        return names

    def _spec(self, layout: Layout) -> DatasetSpec:
        from vfm.data.labels import find_class_names

        spec = layout.with_defaults(DatasetSpec(image_key=self.image_key, label_key=self.label_key), labels=True)
        names, _ = self._words(layout)
        if names and layout.kind == "folder":  # whose labels are places among its folders, not written anywhere
            own = find_class_names(layout, None)
            if len(names) != len(own):
                raise UserError(f"{len(names)} class names for the {len(own)} class folders of {layout.paths[0]}")
        return spec.model_copy(update={"class_names": names or find_class_names(layout, spec.label_key)})


class Tagged(_Named):
    """Your own images with several labels each: tars with `npy` (CLIP_benchmark's) or a list in `json`."""

    kind: Literal["data.tagged"] = "data.tagged"
    labels_key: str = Field(
        "npy", description="where the labels stand: `npy` (of each class whether the image has it) or `json.FIELD`"
    )

    def run(self, ctx: Context) -> TaggedImages:
        """Indexes the images, in a folder within its own, and writes which labels each has."""
        from vfm.data.indexing import Indexing
        from vfm.data.report import leave_panels
        from vfm.data.source import Source
        from vfm.data.tags import TAGS_FILE, write_tags

        layout = self.layout()
        spec, images = self._spec(layout), ctx.directory / "images"
        indexing = Indexing(ctx, spec, self.max_bad_fraction, self.num_samples, self.verify)
        count = indexing.run(images, layout.shards(images, spec), layout.num_shards)
        leave_panels(
            ctx, ImageDataset.create(images, num_samples=count, bad_samples=dict(indexing.counts)), indexing.bad
        )
        source = Source(images)
        tags = [source.facts(number).labels or () for number in range(count)]
        write_tags(ctx.directory / TAGS_FILE, tags)
        templates = self._words(layout)[1]
        return TaggedImages.create(
            ctx.directory,
            data="images",
            num_samples=count,
            class_names=spec.class_names,
            num_images=[sum(label in row for row in tags) for label in range(len(spec.class_names))],
            **({"templates": templates} if templates else {}),
        )

    def preflight(self, ctx: Preflight) -> None:
        """Decodes a sample and reads its labels."""
        from vfm.data.indexing import first_sample

        layout = self.layout()
        first_sample(layout, self._spec(layout))

    def _spec(self, layout: Layout) -> DatasetSpec:
        from vfm.data.labels import find_class_names

        if layout.kind != "webdataset":
            raise UserError(f"{layout.paths[0]}: several labels an image are read from tars alone")
        names, _ = self._words(layout)
        names = names or find_class_names(layout, None)
        return DatasetSpec(image_key=self.image_key, labels_key=self.labels_key, class_names=names)


class Digits(Stage):
    """Handwritten digits, 8 x 8 pixels, which come with scikit-learn: a real data set that is on every machine."""

    kind: Literal["data.digits"] = "data.digits"
    split: Literal["train", "test"] = Field("test", description="the first 898 of the 1,797 are for training")

    def run(self, ctx: Context) -> LabeledDataset:
        """Packs them as PNG."""
        from vfm.data.digits import NAMES, TEMPLATES, digits
        from vfm.data.index import write_index
        from vfm.data.report import leave_panels
        from vfm.data.torchvision_sets import PACKED, pack_shards

        shards = list(pack_shards(digits(self.split), ctx.directory))
        spec = PACKED.model_copy(update={"class_names": NAMES})
        count = write_index(ctx.directory, shards, spec)
        dataset = LabeledDataset.create(ctx.directory, num_samples=count, class_names=NAMES, templates=TEMPLATES)
        leave_panels(ctx, dataset)
        return dataset


STAGES = (Labeled, Tagged, Digits)
