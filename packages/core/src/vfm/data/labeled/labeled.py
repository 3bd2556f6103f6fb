"""Index images with one or several labels (`data.labeled`, `data.tagged` and `data.digits`)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import Image

from vfm.base import UserError
from vfm.data.index.index import BadRow, write_index
from vfm.data.index.source import Source
from vfm.data.indexing.dataset_panels import add_dataset_panels
from vfm.data.indexing.indexing import Indexing, check_bad, first_sample
from vfm.data.labeled.class_names import find_class_names
from vfm.data.labeled.stages import Digits, Labeled, NamedImages, Tagged
from vfm.data.labeled.tags import TAGS_FILE, write_tags
from vfm.data.layouts.layout import Layout, find_layout
from vfm.data.layouts.torchvision_sets import (
    PACKED,
    open_torchvision,
    pack_shards,
    torchvision_classes,
    torchvision_shards,
)
from vfm.data.ledger.account import Account
from vfm.data.prompts.clip_benchmark import TEMPLATES_FILE, lines_beside, names_and_templates
from vfm.data.prompts.templates import check_templates
from vfm.data.samples.sample import BadSample, count_reasons, raise_if_unreachable
from vfm.data.samples.shards import counted
from vfm.data.samples.spec import DatasetSpec
from vfm.interfaces import Context, ImageDataset, LabeledDataset, Preflight, TaggedImages

DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGIT_TEMPLATES = ["a photo of the number {}.", "a handwritten digit {}."]
NUM_TRAIN_DIGITS = 898  # the first half, as in scikit-learn's own examples


def index_labeled(config: Labeled, ctx: Context) -> LabeledDataset:
    """Index the images and their labels."""
    listed: list[Account] = []
    if config.torchvision:
        dataset, spec = _torchvision(config, config.torchvision)
        shards = counted(torchvision_shards(dataset, ctx.directory))
        num_shards = None  # unknown before the dataset is packed
        paths: list[str] = []
        templates = _names_and_templates(config, None)[1]
    else:
        layout = _layout(config)
        spec = _labeled_spec(config, layout)
        shards = layout.shards(ctx.directory, spec, listed)
        num_shards = layout.num_shards
        paths = layout.paths
        templates = _names_and_templates(config, layout)[1]
    indexing = Indexing.of(config, ctx, spec, paths, config.torchvision)
    count = indexing.run(ctx.directory, shards, num_shards, listed)
    labeled = LabeledDataset.create(
        ctx.directory,
        num_samples=count,
        bad_samples=dict(indexing.counts),
        class_names=spec.class_names,
        **_templates_field(templates),
    )
    add_dataset_panels(ctx, labeled, indexing.bad)
    return labeled


def check_labeled(config: Labeled, ctx: Preflight) -> None:
    """Decode one sample and read the templates, or open the torchvision dataset."""
    if config.torchvision:
        _torchvision(config, config.torchvision)
    else:
        layout = _layout(config)
        first_sample(layout, _labeled_spec(config, layout))


def index_tagged(config: Tagged, ctx: Context) -> TaggedImages:
    """Index the images in a subfolder of the artifact, and write their labels."""
    layout = _layout(config)
    spec = _tagged_spec(config, layout)
    images = ctx.directory / "images"
    indexing = Indexing.of(config, ctx, spec, layout.paths)
    listed: list[Account] = []
    count = indexing.run(images, layout.shards(images, spec, listed), layout.num_shards, listed)
    dataset = ImageDataset.create(images, num_samples=count, bad_samples=dict(indexing.counts))
    add_dataset_panels(ctx, dataset, indexing.bad)
    tags = _tags(Source(images), indexing)
    write_tags(ctx.directory / TAGS_FILE, tags)
    num_images = [0] * len(spec.class_names)
    for labels in tags:
        for label in labels:
            num_images[label] += 1
    templates = _names_and_templates(config, layout)[1]
    return TaggedImages.create(
        ctx.directory,
        data="images",
        num_samples=count,
        class_names=spec.class_names,
        num_images=num_images,
        **_templates_field(templates),
    )


def _tags(source: Source, indexing: Indexing) -> list[tuple[int, ...]]:
    """Read the labels of each sample. Bad samples, found in shards that were not read for the index, have no labels.

    Raises:
        UserError: If too many samples are bad, or a label is not one of the classes.
    """
    tags: list[tuple[int, ...]] = []
    bad: list[BadRow] = []
    for number in range(len(source)):
        try:
            tags.append(source.facts(number).labels or ())
        except BadSample as problem:
            raise_if_unreachable(problem)  # the sample would be one without labels when it is back
            indexing.ctx.skip(problem.reason, problem.where)
            bad.append(BadRow(*source.locate(number), problem.reason, problem.where))
            tags.append(())
    indexing.bad += bad
    indexing.check_labels()
    check_bad(indexing.ctx.stage, count_reasons(bad), len(source), indexing.max_bad_fraction)
    return tags


def check_tagged(config: Tagged, ctx: Preflight) -> None:
    """Decode one sample and read its labels."""
    layout = _layout(config)
    first_sample(layout, _tagged_spec(config, layout))


def pack_digits(config: Digits, ctx: Context) -> LabeledDataset:
    """Pack the digits as PNG."""
    shards = list(pack_shards(load_digits(config.split), ctx.directory))
    count = write_index(ctx.directory, shards, PACKED.model_copy(update={"class_names": DIGIT_NAMES}))
    dataset = LabeledDataset.create(
        ctx.directory, num_samples=count, class_names=DIGIT_NAMES, templates=DIGIT_TEMPLATES
    )
    add_dataset_panels(ctx, dataset)
    return dataset


def load_digits(split: Literal["train", "test"]) -> list[tuple[Image.Image, int]]:
    """Load scikit-learn's handwritten digits as RGB images with labels, 8 x 8 pixels, white on black.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI); the part in scikit-learn.
    """
    import sklearn.datasets  # an optional extra

    digits = sklearn.datasets.load_digits()
    if split == "train":
        rows = slice(None, NUM_TRAIN_DIGITS)
    else:
        rows = slice(NUM_TRAIN_DIGITS, None)
    greys = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)  # (N, 8, 8), stored as 0 to 16
    samples = []
    for grey, label in zip(greys, digits.target[rows], strict=True):
        samples.append((Image.fromarray(grey).convert("RGB"), int(label)))
    return samples


def _templates_field(templates: list[str]) -> dict[str, list[str]]:
    """Build the artifact's field for templates. It is empty without templates, so that the default applies."""
    return {"templates": templates} if templates else {}


def _layout(config: NamedImages) -> Layout:
    return find_layout(config.path, config.format, config.image_root, config.split)


def _names_and_templates(config: NamedImages, layout: Layout | None) -> tuple[list[str], list[str]]:
    """Collect the configured class names and templates.

    Empty lists stand for the dataset's names and the default templates.
    """
    names, templates = names_and_templates(config.names_of) if config.names_of else ([], [])
    lines = lines_beside(layout.paths[0], TEMPLATES_FILE) if layout else []
    from_file = check_templates(list(filter(None, lines)), TEMPLATES_FILE)
    return config.class_names or names, config.templates or templates or from_file


def _torchvision(config: Labeled, name: str) -> tuple[Any, DatasetSpec]:
    """Open a torchvision dataset, and name its classes."""
    dataset = open_torchvision(name, str(config.path), config.split)
    names, _ = _names_and_templates(config, None)
    if names:
        classes = getattr(dataset, "classes", None) or names
        if len(names) != len(classes):
            raise UserError(f"expected {len(classes)} class names for torchvision's {name}, got {len(names)}")
    else:
        names = torchvision_classes(dataset, name)
    return dataset, PACKED.model_copy(update={"class_names": names})


def _spec(config: NamedImages, label_key: str | None) -> DatasetSpec:
    return DatasetSpec(image_key=config.image_key, label_key=label_key, columns=config.columns)


def _labeled_spec(config: Labeled, layout: Layout) -> DatasetSpec:
    spec = layout.with_defaults(_spec(config, config.label_key), labels=True)
    names, _ = _names_and_templates(config, layout)
    if names and layout.kind == "folder":  # labels are positions among the class folders, so the counts must agree
        folder_names = find_class_names(layout, None)
        if len(names) != len(folder_names) and not set(folder_names) <= set(names):
            raise UserError(
                f"{layout.paths[0]}: expected {len(folder_names)} class names, one per folder, got {len(names)}"
            )
    return spec.model_copy(update={"class_names": names or find_class_names(layout, spec.label_key)})


def _tagged_spec(config: Tagged, layout: Layout) -> DatasetSpec:
    if layout.kind != "webdataset":
        raise UserError(f"{layout.paths[0]}: images with several labels can only be read from tars")
    names, _ = _names_and_templates(config, layout)
    names = names or find_class_names(layout, None)
    return _spec(config, None).model_copy(update={"labels_key": config.labels_key, "class_names": names})
