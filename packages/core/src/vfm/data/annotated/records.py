"""What the readers of annotation formats yield: pictures, classes and annotations as their files give them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard

from vfm.base import UserError
from vfm.data.index.source import Source
from vfm.data.samples.sample import BadSample
from vfm.data.samples.shards import Found
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import ImageEntry, write_image_lists

Box = tuple[float, float, float, float]
Label = Literal["boxes", "masks", "semantic", "panoptic"]
Reason = Literal[
    "bad_box",
    "box_outside_image",
    "bad_polygon",
    "bad_mask",
    "unknown_class",
    "unknown_image",
    "duplicate_id",
    "broken_file",
]
IGNORED = -1  # class of a pixel without label
NOT_ALLOWED = -2  # class of a value that a label map must not have


class BadAnnotation(Exception):  # noqa: N818 (a property of the data, counted and skipped)
    """An annotation that cannot be used: the reason, one of a fixed set, and its address."""

    def __init__(self, reason: Reason, where: str) -> None:
        super().__init__(reason, where)
        self.reason = reason
        self.where = where


@dataclass(frozen=True)
class AnnotatedImage:
    """One picture of an annotated dataset.

    Attributes:
        key: unique name.
        image: path of the file; empty where the images are in shards.
        image_id: the source's id, by which files of results name the picture.
        size: width and height that the annotations refer to; None: those of the file.
        negatives: ids of classes that were checked and are absent (LVIS).
        not_exhaustive: ids of classes of which only some instances are annotated (LVIS).
        label_map: path of the picture's label map.
        problem: why its entry cannot be used.
    """

    key: str
    image: str
    image_id: int
    size: tuple[int, int] | None = None
    negatives: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()
    label_map: str = ""
    problem: BadSample | None = None


@dataclass(frozen=True)
class Annotation:
    """One object as its file gives it.

    Attributes:
        picture: index among the reader's pictures.
        class_id: the source's id of the class.
        where: address, for messages.
        box: (left, top, right, bottom) in pixels; None: that of the mask.
        segmentation: COCO's polygons or runs, or encoded counts (`bytes`); None: no mask.
        area: in pixels; None: the mask's, else the box's.
        crowd: a region with several objects, which is never a target.
        ignored: too difficult to count as a mistake.
        identity: the source's id of the annotation, which must be unique; None: it has none.
    """

    picture: int
    class_id: int
    where: str
    box: Box | None = None
    segmentation: Any = None
    area: float | None = None
    crowd: bool = False
    ignored: bool = False
    identity: int | None = None


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset, in the order of the labels."""

    names: list[str]
    ids: list[int]
    things: list[bool] = field(default_factory=list)  # empty: all
    frequency: list[str] = field(default_factory=list)

    @classmethod
    def numbered(cls, names: Sequence[str]) -> Classes:
        """Return classes whose ids are 0, 1, ..."""
        return cls(list(names), list(range(len(names))))


def check_ids(pictures: Sequence[AnnotatedImage], place: str) -> None:
    """Check that each picture of a file has an id of its own.

    Raises:
        UserError: an id is repeated.
    """
    ids = Counter(one.image_id for one in pictures)
    if ids and (most := ids.most_common(1)[0])[1] > 1:
        raise UserError(f"{place}: {most[1]} pictures have the id {most[0]}; expected each id once")


class AnnotationReader(Protocol):
    """Reader of one format."""

    format: str
    labels: list[Label]
    classes: Classes
    federated: bool
    map_classes: list[int]  # class of each value of a label map; empty: there are none
    background: int | None  # class of the pixels outside all masks
    spec: DatasetSpec

    def shards(self, directory: Path) -> Iterator[Found]:
        """Yield the shards of the images, as `vfm.data.layouts.layout.Layout.shards` does."""
        ...

    def list_images(self, source: Source | None) -> list[AnnotatedImage]:
        """Return the pictures in the order of the source's samples; without a source, those that the files list."""
        ...

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects in any order, given width and height of each picture."""
        ...


@dataclass
class ListedImages:
    """Base of the readers whose pictures are files."""

    listed: list[AnnotatedImage] = field(default_factory=list)
    spec: DatasetSpec = field(default_factory=DatasetSpec)
    federated: bool = False
    map_classes: list[int] = field(default_factory=list)
    background: int | None = None

    def shards(self, directory: Path) -> Iterator[Found]:
        """Yield lists of the image files, whose number is known."""
        entries = (ImageEntry(one.key, one.image) for one in self.listed)
        yield from ((shard, True) for shard in write_image_lists(directory, entries, self.spec))

    def list_images(self, source: Source | None) -> list[AnnotatedImage]:
        """Return the pictures."""
        return self.listed


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a finite number that fits into 64 bits."""
    return isinstance(value, int | float) and abs(value) < 2**63


def box_of(left: float, top: float, width: float, height: float) -> Box:
    """Return the corners of a box of COCO's form."""
    return left, top, left + width, top + height
