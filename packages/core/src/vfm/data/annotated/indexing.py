"""Work of `data.annotated`: pictures and annotations are checked and written, what is broken is counted by reason."""

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
from vfm.data.indexing.indexing import Indexing
from vfm.data.samples.images import open_image
from vfm.data.samples.sample import BadSample
from vfm.interfaces import AnnotatedImages, Context, Preflight

ORIENTATION = 0x0112  # EXIF tag
TURNED, SIDEWAYS = range(2, 9), range(5, 9)  # orientations; those that swap width and height
RARE, COMMON = 10, 100  # LVIS' groups: classes in up to so many images


def index_annotated(config: Annotated, ctx: Context) -> AnnotatedImages:
    """Read the annotations and index the images."""
    reader = open_reader(config)
    ctx.log(f"{config.path}: {reader.format}, {len(reader.classes.names)} classes")
    return import_annotations(
        reader, ctx, Wanted(config.classes, config.keep_empty, config.images, config.max_bad_fraction)
    )


def check_annotated(config: Annotated, ctx: Preflight) -> None:
    """Recognise the format, and check the classes."""
    choose_classes(open_reader(config).classes, config.classes)


@dataclass(frozen=True)
class Wanted:
    """What is kept of a dataset.

    classes: names of the classes to keep, in the order of their labels; empty: all.
    keep_empty: keep images without objects.
    images: index the images; false: labels only.
    max_bad_fraction: tolerated fraction of bad images, and of bad annotations.
    """

    classes: Sequence[str]
    keep_empty: bool
    images: bool
    max_bad_fraction: float


def import_annotations(
    reader: AnnotationReader, ctx: Context, wanted: Wanted, name: str | None = None
) -> AnnotatedImages:
    """Check the pictures and the annotations of a reader, and write them into `ctx.directory`.

    Args:
        reader: of the annotations.
        ctx: of the running stage.
        wanted: what is kept.
        name: name of the format; default: the reader's.

    Raises:
        UserError: too many are bad, none is good, or two pictures have one id.
    """
    kept, labels = choose_classes(reader.classes, wanted.classes)
    pictures, checked = _check_pictures(reader, ctx, wanted)
    bad: Counter[str] = Counter()

    def skip(problem: BadAnnotation) -> None:
        bad[problem.reason] += 1
        ctx.skip(problem.reason, problem.where)

    table = ObjectTable.of(clean_annotations(reader.annotations(checked.sizes), checked.sizes, labels, skip))
    for identity in table.repeated:
        skip(BadAnnotation("duplicate_id", f"annotation {identity}"))
    if bad.total() > wanted.max_bad_fraction * (bad.total() + len(table.table)):
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
        limit = f"max_bad_fraction is {wanted.max_bad_fraction}"
        raise UserError(f"{ctx.stage}: {bad.total()} annotations cannot be used ({limit}): {reasons}")
    if not wanted.keep_empty:
        for number in np.flatnonzero(np.bincount(table.image, minlength=len(pictures)) == 0).tolist():
            checked.problems.setdefault(number, BadSample("no_objects", pictures[number].key))
    numbers = checked.numbers(len(pictures))
    table = table.renumbered(numbers)
    table.write(ctx.directory)
    rows = _image_rows(pictures, checked, numbers, labels)
    write_images(ctx.directory, rows)
    if checked.indexing:
        found = checked.bad_rows()
        write_index(ctx.directory, checked.indexing.shards, reader.spec, bad_rows=[*checked.indexing.bad, *found])
    dataset = AnnotatedImages.create(
        ctx.directory,
        num_samples=len(rows),
        bad_samples=checked.reasons,
        format=name or reader.format,
        labels=reader.labels,
        class_names=kept.names,
        class_ids=kept.ids,
        things=kept.things,
        background=reader.background,
        frequency=kept.frequency or _frequency(table, len(kept.names)),
        federated=reader.federated,
        map_classes=[number if number < 0 else labels[reader.classes.ids[number]] for number in reader.map_classes],
        has_images=wanted.images,
        num_objects=len(table.table),
        bad_annotations=dict(bad),
    )
    add_annotation_panels(ctx, dataset)
    return dataset


def choose_classes(classes: Classes, names: Sequence[str]) -> tuple[Classes, dict[int, int]]:
    """Return the classes to keep, and the label of each class id, -1 for a class that is left out.

    Raises:
        UserError: a name is unknown or repeated.
    """
    places = list(range(len(classes.names)))
    if names:
        if unknown := [name for name in names if name not in classes.names]:
            raise UserError(
                f"classes: the dataset has no class {unknown[0]!r}{did_you_mean(unknown[0], classes.names)}"
            )
        if len(set(names)) < len(names):
            raise UserError("classes: a name is repeated")
        places = [classes.names.index(name) for name in names]
    labels = dict.fromkeys(classes.ids, IGNORED) | {classes.ids[place]: label for label, place in enumerate(places)}
    things, frequency = classes.things or [True] * len(classes.names), classes.frequency
    kept = Classes(
        [classes.names[place] for place in places],
        [classes.ids[place] for place in places],
        [things[place] for place in places],
        [frequency[place] for place in places] if frequency else [],
    )
    return kept, labels


@dataclass
class _Checked:
    """The pictures after a look at each file."""

    sizes: list[tuple[int, int]]
    upright: list[bool]
    indexing: Indexing | None = None
    source: Source | None = None
    problems: dict[int, BadSample] = field(default_factory=dict)

    def numbers(self, count: int) -> NDArray[np.int64]:
        """Return the new number of each picture, -1 for a bad one."""
        good = np.array([number not in self.problems for number in range(count)], dtype=bool)
        return np.where(good, np.cumsum(good) - 1, -1)

    @property
    def reasons(self) -> dict[str, int]:
        """Number of bad pictures by reason."""
        found: Counter[str] = Counter(bad.reason for bad in self.problems.values())
        return dict(found + (self.indexing.counts if self.indexing else Counter()))

    def bad_rows(self) -> list[BadRow]:
        """Return the bad pictures as rows of their shards."""
        assert self.source
        return [BadRow(*self.source.locate(n), bad.reason, bad.where) for n, bad in sorted(self.problems.items())]


def _check_pictures(reader: AnnotationReader, ctx: Context, wanted: Wanted) -> tuple[list[AnnotatedImage], _Checked]:
    indexing = source = None
    if wanted.images:
        indexing = Indexing(
            ctx, reader.spec, wanted.max_bad_fraction, f"the images of {reader.format} annotations", verify=False
        )
        indexing.run(ctx.directory, reader.shards(ctx.directory))
        source = Source(ctx.directory.resolve())
    pictures = reader.list_images(source)
    checked = _Checked([], [], indexing, source)
    for number, picture in enumerate(pictures):
        try:
            size, upright = _check_picture(reader, picture, source, number)
        except BadSample as bad:
            checked.problems[number] = bad
            ctx.skip(bad.reason, bad.where)
            size, upright = picture.size or (1, 1), False
        checked.sizes.append(size)
        checked.upright.append(upright)
        if number % 1000 == 0:
            ctx.progress(number, len(pictures), "images")
    if len(checked.problems) > wanted.max_bad_fraction * len(pictures) or len(checked.problems) == len(pictures):
        reasons = Counter(bad.reason for bad in checked.problems.values())
        first = next(iter(checked.problems.values()), "there is none")
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        limit = f"max_bad_fraction is {wanted.max_bad_fraction}"
        raise UserError(
            f"{ctx.stage}: {len(checked.problems)} of {len(pictures)} pictures cannot be used ({limit}): {listed};"
            f" the first is {first}"
        )
    return pictures, checked


def _check_picture(
    reader: AnnotationReader, picture: AnnotatedImage, source: Source | None, number: int
) -> tuple[tuple[int, int], bool]:
    """Return the size that a picture's annotations refer to, and whether that is after its EXIF turn."""
    if picture.problem:
        raise picture.problem
    declared = picture.size
    if picture.label_map:
        declared = check_map(picture.label_map, reader.map_classes)
    if source is None:
        if declared is None:
            raise BadSample("wrong_size", f"{picture.key}: labels alone need the picture's size")
        return declared, False
    image = open_image(source[number].image, source.where(number))
    orientation = image.getexif().get(ORIENTATION)
    turned = image.size[::-1] if orientation in SIDEWAYS else image.size
    if declared in (None, turned):
        return turned, orientation in TURNED
    if declared == image.size:
        return declared, False
    raise BadSample("wrong_size", f"{source.where(number)}: {image.size} pixels, {declared} in its annotations")


def _image_rows(
    pictures: Sequence[AnnotatedImage], checked: _Checked, numbers: NDArray[np.int64], labels: Mapping[int, int]
) -> list[ImageRow]:
    def known(ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(labels[one] for one in ids if labels.get(one, -1) >= 0))

    return [
        ImageRow(one.key, one.image_id, *size, upright, one.label_map, known(one.negatives), known(one.not_exhaustive))
        for one, size, upright, number in zip(pictures, checked.sizes, checked.upright, numbers, strict=True)
        if number >= 0
    ]


def _frequency(table: ObjectTable, num_classes: int) -> list[str]:
    """Return LVIS' group of each class by the number of its images; none for label maps."""
    if not len(table.table):
        return []
    counts = table.images_by_label(num_classes).tolist()
    return ["r" if count <= RARE else "c" if count <= COMMON else "f" for count in counts]
