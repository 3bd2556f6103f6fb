"""Write `images.parquet`, a row per sample, and `annotations.parquet`, sorted by image."""

# N objects, I images

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.data.annotated.records import Box
from vfm.storage.store_files import read_parquet, reading

IMAGES_FILE = "images.parquet"
OBJECTS_FILE = "annotations.parquet"
ROWS_AT_A_TIME = 50_000
IMAGES = pa.schema(
    {
        "key": pa.string(),
        "image_id": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "upright": pa.bool_(),  # the annotations refer to the image after EXIF rotation
        "label_map": pa.string(),
        "negatives": pa.list_(pa.int32()),
        "not_exhaustive": pa.list_(pa.int32()),
    }
)
OBJECTS = pa.schema(
    {
        "image": pa.int32(),
        "label": pa.int32(),
        "box": pa.list_(pa.float64(), 4),
        "counts": pa.binary(),
        "area": pa.float64(),
        "crowd": pa.bool_(),
        "ignored": pa.bool_(),
        "identity": pa.int64(),
    }
)


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """An object as it is stored. Boxes have 64 bits, so that scores equal the scores of the source's tools."""

    image: int
    label: int
    box: Box
    counts: bytes | None
    area: float
    crowd: bool = False
    ignored: bool = False
    identity: int | None = None


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image as it is stored. `negatives` and `not_exhaustive` contain labels."""

    key: str
    image_id: int
    width: int
    height: int
    upright: bool = False
    label_map: str = ""
    negatives: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()


def as_indices(rows: NDArray[np.int64] | NDArray[np.bool_] | slice, length: int) -> NDArray[np.int64]:
    """Convert a selection of rows to row indices."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(length))
    if rows.dtype == np.bool_:
        return np.flatnonzero(rows)
    return rows.astype(np.int64, copy=False)


@dataclass(frozen=True)
class ObjectArrays:
    """Objects of an image or of several, as an array for each field."""

    image: NDArray[np.int64]  # (N,)
    labels: NDArray[np.int64]  # (N,)
    boxes: NDArray[np.float64]  # (N, 4): left, top, right, bottom
    counts: Sequence[bytes | None]  # masks as run lengths
    areas: NDArray[np.float64]  # (N,)
    crowd: NDArray[np.bool_]  # (N,)
    ignored: NDArray[np.bool_]  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> ObjectArrays:
        at = as_indices(rows, len(self))
        counts = [self.counts[index] for index in at.tolist()]
        return ObjectArrays(
            self.image[at], self.labels[at], self.boxes[at], counts, self.areas[at], self.crowd[at], self.ignored[at]
        )


@dataclass(frozen=True)
class AnnotationTables:
    """The tables of images and objects of a dataset, in memory."""

    images: Any  # pyarrow Table
    objects: Any

    @cached_property
    def all(self) -> ObjectArrays:
        """All objects, sorted by image."""
        table = self.objects.combine_chunks()
        return ObjectArrays(
            image=table["image"].to_numpy().astype(np.int64),
            labels=table["label"].to_numpy().astype(np.int64),
            boxes=np.asarray(table["box"].combine_chunks().flatten()).reshape(-1, 4),
            counts=table["counts"].to_pylist(),
            areas=table["area"].to_numpy(),
            crowd=table["crowd"].to_numpy(),
            ignored=table["ignored"].to_numpy(),
        )

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.searchsorted(self.objects["image"].to_numpy(), np.arange(len(self.images) + 1))

    def of_image(self, number: int) -> ObjectArrays:
        """Select the objects of an image."""
        return self.all[slice(int(self._ends[number]), int(self._ends[number + 1]))]

    def column(self, name: str) -> list[Any]:
        """List the values in a column of the images."""
        return list(self.images[name].to_pylist())


def write_images(directory: Path, rows: Iterable[ImageRow]) -> None:
    """Write `images.parquet`."""
    records = [_record(row, IMAGES) for row in rows]
    pq.write_table(pa.Table.from_pylist(records, IMAGES), directory / IMAGES_FILE, write_page_checksum=True)


@dataclass(frozen=True)
class ObjectTable:
    """Objects of all images before they are written.

    Attributes:
        table: The objects.
        repeated: Identities that occurred before. These objects are left out.
        left_out: Numbers of these objects among all.
    """

    table: Any
    repeated: list[int]
    left_out: Sequence[int] = ()

    @classmethod
    def of(cls, rows: Iterable[ObjectRow]) -> ObjectTable:
        """Collect objects in any order. If several have the same identity, only the first is kept."""
        parts = [pa.Table.from_pylist(chunk, OBJECTS) for chunk in _chunks(rows)]
        table = pa.concat_tables(parts) if parts else OBJECTS.empty_table()
        known = ~np.asarray(table["identity"].is_null())
        identity = table["identity"].filter(pa.array(known)).to_numpy()
        is_first = np.zeros(len(identity), dtype=bool)
        is_first[np.unique(identity, return_index=True)[1]] = True
        left_out = np.flatnonzero(known)[~is_first]
        kept_mask = np.ones(len(table), dtype=bool)
        kept_mask[left_out] = False
        return cls(table.filter(pa.array(kept_mask)), identity[~is_first].tolist(), left_out.tolist())

    @property
    def image(self) -> NDArray[np.int64]:
        """Image of each object, (N,)."""
        return np.asarray(self.table["image"].to_numpy(), dtype=np.int64)

    def images_by_label(self, num_classes: int) -> NDArray[np.int64]:
        """Count the images with each class, (num_classes,)."""
        pairs = np.unique(np.stack([self.image, self.table["label"].to_numpy()]), axis=1)
        return np.bincount(pairs[1], minlength=num_classes)

    def renumbered(self, numbers: NDArray[np.int64]) -> ObjectTable:
        """Replace the image numbers by `numbers`, (I,), and drop the objects of images with -1."""
        image = numbers[self.image] if len(self.table) else self.image
        table = self.table.set_column(0, OBJECTS.field("image"), pa.array(image, pa.int32()))
        return ObjectTable(table.filter(pa.array(image >= 0)), self.repeated)

    def write(self, directory: Path) -> None:
        """Write `annotations.parquet`, sorted by image."""
        ordered = self.table.take(np.argsort(self.image, kind="stable"))
        pq.write_table(ordered, directory / OBJECTS_FILE, write_page_checksum=True)


def read_tables(directory: Path) -> AnnotationTables:
    """Read both tables.

    Raises:
        UserError: If a file is missing or damaged, or an object belongs to no image.
    """
    images = read_parquet(directory / IMAGES_FILE, IMAGES.names)
    objects = read_parquet(directory / OBJECTS_FILE, OBJECTS.names)
    with reading(directory / OBJECTS_FILE, "annotations"):
        image = objects["image"].to_numpy()
        if len(image) and (image.min() < 0 or image.max() >= len(images) or (np.diff(image) < 0).any()):
            raise ValueError("objects are not sorted by image, or belong to no image")
    return AnnotationTables(images, objects)


def _chunks(rows: Iterable[ObjectRow]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, ROWS_AT_A_TIME)):
        yield [_record(row, OBJECTS) for row in chunk]


def _record(row: ImageRow | ObjectRow, schema: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in schema.names}
