"""Check and write images and annotations of `data.annotated`, and count the unusable ones by reason."""

# I images, C classes

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError, did_you_mean
from vfm.data.annotated.cleaning import clean_annotations
from vfm.data.annotated.formats import open_reader
from vfm.data.annotated.label_files import check_map
from vfm.data.annotated.panels import add_annotation_panels
from vfm.data.annotated.records import IGNORED, AnnotatedImage, AnnotationReader, BadAnnotation, Classes
from vfm.data.annotated.stages import Annotated
from vfm.data.annotated.tables import ImageRow, ObjectTable, write_images
from vfm.data.index.index import BadRow, write_index
from vfm.data.index.source import Source
from vfm.data.indexing.indexing import Indexing, warn_of_unreachable
from vfm.data.ledger.account import USED, Account
from vfm.data.ledger.ledger import ANNOTATED_LEDGER, LedgerWriter
from vfm.data.samples.images import open_image
from vfm.data.samples.sample import UNREACHABLE, BadSample, count_reasons
from vfm.interfaces import AnnotatedImages, Context, Preflight

ORIENTATION = 0x0112  # EXIF tag
TURNED, SIDEWAYS = range(2, 9), range(5, 9)  # orientations other than upright, and the ones that swap width and height
RARE, COMMON = 10, 100  # LVIS' frequency groups: classes in up to this many images


def index_annotated(config: Annotated, ctx: Context) -> AnnotatedImages:
    """Read the annotations and index the images."""
    reader = open_reader(config)
    ctx.log(f"{config.path}: {reader.format}, {len(reader.classes.names)} classes")
    path = config.annotations or next(iter(config.sources()))
    wanted = Wanted(config.classes, config.keep_empty, config.images, config.max_bad_fraction, path, config.arrow_copy)
    return import_annotations(reader, ctx, wanted)


def check_annotated(config: Annotated, ctx: Preflight) -> None:
    """Recognise the format, and check the classes."""
    choose_classes(open_reader(config).classes, config.classes)


@dataclass(frozen=True)
class Wanted:
    """The parts of a dataset to keep.

    Attributes:
        classes: Names of the classes to keep, in the order of their labels. Empty: all classes.
        keep_empty: Keep images without objects.
        images: Index the images. False: labels only.
        max_bad_fraction: Tolerated fraction of bad images, and of bad annotations.
        source: Path of the annotations, for the ledger.
        arrow_copy: Write Arrow copies of tables. None: there is no such setting.
    """

    classes: Sequence[str]
    keep_empty: bool
    images: bool
    max_bad_fraction: float
    source: str = ""
    arrow_copy: bool | None = None


def import_annotations(
    reader: AnnotationReader, ctx: Context, wanted: Wanted, name: str | None = None
) -> AnnotatedImages:
    """Check the images and annotations of a reader, and write them to `ctx.directory`.

    Args:
        reader: Reads the annotations.
        ctx: Context of the running stage.
        wanted: The parts to keep.
        name: Name of the format. Default: the reader's format.

    Raises:
        UserError: If too many images or annotations are bad, no image is good, or two images have the same id.
    """
    kept_classes, labels = choose_classes(reader.classes, wanted.classes)
    images, checked = _check_images(reader, ctx, wanted)
    bad: Counter[str] = Counter()
    places: list[str] = []

    def skip(problem: BadAnnotation) -> None:
        bad[problem.reason] += 1
        places.append(problem.where)
        ctx.emit("bad_sample", reason=problem.reason, where=problem.where)  # not counted: the image is no bad sample

    uses: list[str] = []
    annotations = reader.annotations(checked.sizes)
    table = ObjectTable.of(clean_annotations(annotations, checked.sizes, labels, skip, checked.problems, uses))
    used = np.flatnonzero(np.array(uses) == USED)
    for row in table.left_out:
        uses[used[row]] = "duplicate_id"
    for identity in table.repeated:
        skip(BadAnnotation("duplicate_id", f"annotation {identity}"))
    reasons = _in_words(bad)
    wrong = bad.total() - bad["bad_image"]  # bad images have their own limit
    if wrong > wanted.max_bad_fraction * (wrong + len(table.table)):
        limit = f"max_bad_fraction is {wanted.max_bad_fraction}"
        raise UserError(f"{ctx.stage}: annotations that cannot be used: {wrong} ({limit}): {reasons}")
    if bad:
        ctx.warn(f"annotations left out: {bad.total():,} ({reasons}); the first is {places[0]}")
    if not wanted.keep_empty:
        objects_per_image = np.bincount(table.image, minlength=len(images))
        for number in np.flatnonzero(objects_per_image == 0).tolist():  # a bad image keeps its other reason
            checked.problems.setdefault(number, BadSample("no_objects", images[number].key))
    with LedgerWriter(ctx.directory / ANNOTATED_LEDGER) as ledger:
        image_uses = [USED] * len(images)
        for number, problem in checked.problems.items():
            image_uses[number] = problem.reason
        ledger.add(Account.of_uses(wanted.source, "images", image_uses), {})
        ledger.add(Account.of_uses(wanted.source, "annotations", uses), {})
    numbers = checked.numbers(len(images))
    table = table.renumbered(numbers)
    table.write(ctx.directory)
    rows = _image_rows(images, checked, numbers, labels)
    write_images(ctx.directory, rows)
    if checked.indexing:
        bad_rows = [*checked.indexing.bad, *checked.bad_rows()]
        write_index(ctx.directory, checked.indexing.shards, checked.indexing.spec, bad_rows=bad_rows)
    map_classes: list[int] = []  # values that are ignored or not allowed keep their negative number
    for number in reader.map_classes:
        map_classes.append(number if number < 0 else labels[reader.classes.ids[number]])
    dataset = AnnotatedImages.create(
        ctx.directory,
        num_samples=len(rows),
        bad_samples=checked.reasons,
        format=name or reader.format,
        labels=reader.labels,
        class_names=kept_classes.names,
        class_ids=kept_classes.ids,
        things=kept_classes.things,
        background=reader.background,
        frequency=kept_classes.frequency or _frequency(table, len(kept_classes.names)),
        federated=reader.federated,
        map_classes=map_classes,
        has_images=wanted.images,
        num_objects=len(table.table),
        bad_annotations=dict(bad),
    )
    add_annotation_panels(ctx, dataset)
    return dataset


def choose_classes(classes: Classes, names: Sequence[str]) -> tuple[Classes, dict[int, int]]:
    """Select the classes to keep, and map each class id to its label, or to -1 if the class is left out.

    Raises:
        UserError: If a name is unknown or repeated.
    """
    indices = list(range(len(classes.names)))
    if names:
        for name in names:
            if name not in classes.names:
                raise UserError(f"classes: the dataset has no class {name!r}{did_you_mean(name, classes.names)}")
        if len(set(names)) < len(names):
            raise UserError("classes: a name is repeated")
        indices = list(map(classes.names.index, names))
    labels = dict.fromkeys(classes.ids, IGNORED)
    kept_classes = Classes([], [])
    for label, index in enumerate(indices):
        labels[classes.ids[index]] = label
        kept_classes.names.append(classes.names[index])
        kept_classes.ids.append(classes.ids[index])
        kept_classes.things.append(classes.things[index] if classes.things else True)
        if classes.frequency:
            kept_classes.frequency.append(classes.frequency[index])
    return kept_classes, labels


@dataclass
class _Checked:
    """Result of checking each image file."""

    sizes: list[tuple[int, int]]
    upright: list[bool]
    indexing: Indexing | None = None
    source: Source | None = None
    problems: dict[int, BadSample] = field(default_factory=dict)

    def numbers(self, count: int) -> NDArray[np.int64]:
        """Renumber the images, with -1 for bad ones."""
        good = np.ones(count, dtype=bool)
        good[list(self.problems)] = False
        return np.where(good, np.cumsum(good) - 1, -1)

    def counts(self) -> Counter[str]:
        """Count the images with a problem by reason."""
        return count_reasons(self.problems.values())

    @property
    def reasons(self) -> dict[str, int]:
        """Number of bad images by reason."""
        counts = self.counts()
        if self.indexing:
            counts += self.indexing.counts
        return dict(counts)

    def bad_rows(self) -> list[BadRow]:
        """List the bad images as rows of their shards."""
        assert self.source
        rows = []
        for number, bad in sorted(self.problems.items()):
            shard, row = self.source.locate(number)
            rows.append(BadRow(shard, row, bad.reason, bad.where))
        return rows


def _check_images(reader: AnnotationReader, ctx: Context, wanted: Wanted) -> tuple[list[AnnotatedImage], _Checked]:
    indexing = source = None
    if wanted.images:
        name = f"the images of {reader.format} annotations"
        indexing = Indexing(ctx, reader.spec, wanted.max_bad_fraction, name, verify=False, arrow_copy=wanted.arrow_copy)
        indexing.run(ctx.directory, reader.shards(ctx.directory))
        source = Source(ctx.directory.resolve())
    images = reader.list_images(source)
    checked = _Checked([], [], indexing, source)
    for number, image in enumerate(images):
        try:
            size, upright = _check_image(reader, image, source, number)
        except BadSample as bad:
            checked.problems[number] = bad
            ctx.skip(bad.reason, bad.where, lacks_data=bad.reason == UNREACHABLE)
            # A row is written for an unusable image too, so that numbers of images stay as listed.
            size, upright = image.size or (1, 1), False
        checked.sizes.append(size)
        checked.upright.append(upright)
        if number % 1000 == 0:
            ctx.progress(number, len(images), "images")
    # Stop if too many images are unusable, or none is usable.
    if len(checked.problems) > wanted.max_bad_fraction * len(images) or len(checked.problems) == len(images):
        first = next(iter(checked.problems.values()), "there is none")
        limit = f"max_bad_fraction is {wanted.max_bad_fraction}"
        raise UserError(
            f"{ctx.stage}: {len(checked.problems)} of {len(images)} images cannot be used ({limit}):"
            f" {_in_words(checked.counts())}; the first is {first}"
        )
    warn_of_unreachable(ctx, checked.problems.values(), len(images))
    return images, checked


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def _check_image(
    reader: AnnotationReader, image: AnnotatedImage, source: Source | None, number: int
) -> tuple[tuple[int, int], bool]:
    """Find the size that an image's annotations refer to, and whether it is the size after EXIF rotation."""
    if image.problem:
        raise image.problem
    declared = image.size
    if image.label_map:
        declared = check_map(image.label_map, reader.map_classes)
    if source is None:
        if declared is None:
            raise BadSample("wrong_size", f"{image.key}: labels alone need the image's size")
        return declared, False
    opened = open_image(source[number].image, source.where(number))
    orientation = opened.getexif().get(ORIENTATION)
    turned = opened.size[::-1] if orientation in SIDEWAYS else opened.size
    if declared in (None, turned):
        return turned, orientation in TURNED
    if declared == opened.size:
        return declared, False
    raise BadSample("wrong_size", f"{source.where(number)}: {opened.size} pixels, {declared} in its annotations")


def _image_rows(
    images: Sequence[AnnotatedImage], checked: _Checked, numbers: NDArray[np.int64], labels: Mapping[int, int]
) -> list[ImageRow]:
    def labels_of(class_ids: Sequence[int]) -> tuple[int, ...]:
        known = [labels[class_id] for class_id in class_ids if labels.get(class_id, -1) >= 0]
        return tuple(sorted(known))

    rows = []
    for image, (width, height), upright, number in zip(images, checked.sizes, checked.upright, numbers, strict=True):
        if number >= 0:
            negatives = labels_of(image.negatives)
            not_exhaustive = labels_of(image.not_exhaustive)
            rows.append(
                ImageRow(image.key, image.image_id, width, height, upright, image.label_map, negatives, not_exhaustive)
            )
    return rows


def _frequency(table: ObjectTable, num_classes: int) -> list[str]:
    """Assign each class to LVIS' frequency group by its number of images. Label maps have no groups."""
    if not len(table.table):
        return []
    counts = table.images_by_label(num_classes)
    groups = np.digitize(counts, (RARE, COMMON), right=True)
    return ["rcf"[group] for group in groups.tolist()]
