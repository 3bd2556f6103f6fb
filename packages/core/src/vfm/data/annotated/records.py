"""Images, classes and annotations as the readers of annotation formats yield them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard

from vfm.base import UserError, positions
from vfm.data.index.source import Source
from vfm.data.samples.sample import BadSample
from vfm.data.samples.shards import Found, counted
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
    "bad_image",
]
IGNORED = -1  # class of a pixel without label
NOT_ALLOWED = -2  # class of a value that a label map must not have


class BadAnnotation(Exception):  # noqa: N818 (a property of the data, counted and skipped)
    """An annotation that cannot be used, with its address and a reason from a fixed set."""

    def __init__(self, reason: Reason, where: str) -> None:
        super().__init__(reason, where)
        self.reason = reason
        self.where = where


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of an annotated dataset.

    Attributes:
        key: Unique name.
        image: Path of the file. Empty if the images are in shards.
        image_id: The source's id of the image. Result files use it.
        size: Width and height that the annotations refer to. Default: the size of the file.
        negatives: Ids of classes that were checked and are absent (LVIS).
        not_exhaustive: Ids of classes with only some instances annotated (LVIS).
        label_map: Path of the image's label map.
        problem: Why the image's entry cannot be used.
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
    """An object as its file describes it.

    Attributes:
        image_index: Index among the reader's images.
        class_id: The source's id of the class.
        where: Address, for messages.
        box: (left, top, right, bottom) in pixels. None: the box of the mask.
        segmentation: COCO's polygons or runs, or encoded counts (`bytes`). None: no mask.
        area: Area in pixels. None: the area of the mask, or of the box without a mask.
        crowd: A region with several objects. It is never a target.
        ignored: Too difficult to count as a mistake.
        identity: The source's id of the annotation. It must be unique. None: no id.
    """

    image_index: int
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
    things: list[bool] = field(default_factory=list)  # empty: all classes are things
    frequency: list[str] = field(default_factory=list)

    @classmethod
    def numbered(cls, names: Sequence[str]) -> Classes:
        """Create classes with the ids 0, 1, ..."""
        return cls(list(names), list(range(len(names))))


def check_ids(images: Sequence[AnnotatedImage], path: str) -> None:
    """Check that the images of a file have unique ids.

    Raises:
        UserError: If an id is repeated.
    """
    counts = Counter(image.image_id for image in images)
    for image_id, count in counts.most_common(1):
        if count > 1:
            raise UserError(f"{path}: {count} images have the id {image_id}; expected each id once")


class AnnotationReader(Protocol):
    """Reader of an annotation format."""

    format: str
    labels: list[Label]
    classes: Classes
    federated: bool
    map_classes: list[int]  # class of each value of a label map, empty without label maps
    background: int | None  # class of the pixels outside all masks
    spec: DatasetSpec

    def shards(self, directory: Path) -> Iterator[Found]:
        """Yield the shards of the images, as `vfm.data.layouts.layout.Layout.shards` does."""
        ...

    def list_images(self, source: Source | None) -> list[AnnotatedImage]:
        """List the images in the order of the source's samples, or in the order of the files without a source."""
        ...

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects in any order, given width and height of each image."""
        ...


@dataclass
class ListedImages:
    """Base of the readers for datasets with image files."""

    listed: list[AnnotatedImage] = field(default_factory=list)
    spec: DatasetSpec = field(default_factory=DatasetSpec)
    federated: bool = False
    map_classes: list[int] = field(default_factory=list)
    background: int | None = None

    def shards(self, directory: Path) -> Iterator[Found]:
        """Yield lists of the image files, with a known number of samples."""
        entries = (ImageEntry(image.key, image.image) for image in self.listed)
        yield from counted(write_image_lists(directory, entries, self.spec))

    def list_images(self, source: Source | None) -> list[AnnotatedImage]:
        """List the images."""
        return self.listed

    def index_by_id(self) -> dict[int, int]:
        """Map the id of each image to its index."""
        return positions(image.image_id for image in self.listed)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Check whether a value is a finite number that fits into 64 bits."""
    return isinstance(value, int | float) and abs(value) < 2**63


def box_of(left: float, top: float, width: float, height: float) -> Box:
    """Convert COCO's left, top, width and height of a box to corners."""
    return left, top, left + width, top + height
