"""Read samples whose records contain the objects, from WebDataset's `jpg + json` or Hugging Face's tables.

A record has COCO's `annotations`, or `objects` with a list for each field. It may also have `width`, `height`,
`image_id` and LVIS' lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.data.annotated.object_records import class_names_in, objects_in
from vfm.data.annotated.records import AnnotatedImage, Annotation, BadAnnotation, Classes, Label, check_ids
from vfm.data.index.source import Source
from vfm.data.layouts.layout import Layout
from vfm.data.samples.shards import Found
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.parquet_files import features_of

NUM_READ = 200  # samples to read to find the kinds of labels
FIELDS = ("objects", "width", "height", "image_id")  # columns of Hugging Face's tables, and keys of a json

Record = dict[str, Any]


@dataclass
class SampleRecords:
    """Reader of tars and Parquet files. By default the classes are the names or numbers that occur."""

    layout: Layout
    classes: Classes = field(default_factory=lambda: Classes([], []))
    labels: list[Label] = field(default_factory=list)
    box_format: str = "xywh"
    federated: bool = False
    background: int | None = None
    map_classes: list[int] = field(default_factory=list)
    spec: DatasetSpec = field(default_factory=DatasetSpec)

    def __post_init__(self) -> None:
        self.format = "webdataset" if self.layout.kind == "webdataset" else "hugging_face"
        if not self.classes.names:
            names: list[str] = []
            if self.format == "hugging_face":
                names = _names_in_schema(self.layout.paths[0])
            self.classes = Classes.numbered(names or class_names_in(self._all(), self.layout.paths[0]))
        if not self.labels:
            self.labels = self._kinds_of_labels()

    def _kinds_of_labels(self) -> list[Label]:
        """Find out from the first samples whether the objects have masks."""
        first: list[Annotation | BadAnnotation] = []
        for record in islice(self._all(), NUM_READ):
            first += objects_in(record, self.classes, 0, "", self.box_format)
        if not first:
            raise UserError(f"{self.layout.paths[0]}: no objects found; expected `annotations` or `objects`")
        if any(isinstance(entry, Annotation) and entry.segmentation is not None for entry in first):
            return ["boxes", "masks"]
        return ["boxes"]

    def shards(self, directory: Path) -> Iterator[Found]:
        """Yield the user's files."""
        yield from self.layout.shards(directory, self.spec)

    def list_images(self, source: Source | None) -> list[AnnotatedImage]:
        """List the samples. The id of an image is taken from its record, or else is its number."""
        if source is None:
            raise UserError(f"{self.layout.paths[0]}: images: false needs annotations in files of their own")
        self._source = source
        keys = source.keys
        images = [self._image(number, keys[number], record) for number, record in enumerate(self._of_samples())]
        check_ids(images, self.layout.paths[0])
        return images

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects of all samples."""
        for number, record in enumerate(self._of_samples()):
            if record is not None:  # bad samples have no record
                yield from objects_in(record, self.classes, number, self._source.where(number), self.box_format)

    def _image(self, number: int, key: str, record: Record | None) -> AnnotatedImage:
        facts = record or {}
        width, height = facts.get("width"), facts.get("height")
        size = None
        if isinstance(width, int) and isinstance(height, int):
            size = (width, height)
        image_id = facts.get("image_id")
        if not isinstance(image_id, int):
            image_id = number
        negatives = _numbers(facts.get("neg_category_ids"))
        not_exhaustive = _numbers(facts.get("not_exhaustive_category_ids"))
        return AnnotatedImage(key, "", image_id, size, negatives, not_exhaustive)

    def _of_samples(self) -> Iterator[Record | None]:
        """Yield the record of each sample of the source. Broken records are None."""
        index = self._source.index
        for shard in range(len(index.shards)):
            yield from index.open(shard).records(index.rows(shard).tolist(), FIELDS)

    def _all(self) -> Iterator[Record]:
        assert self.layout.reader
        for path in self.layout.paths:
            reader = self.layout.reader.open(self.layout.reader.find(path)[0], self.spec)
            for record in reader.records(range(len(reader)), FIELDS):
                if record is not None:
                    yield record


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(number for number in value if isinstance(number, int))


def _names_in_schema(path: str) -> list[str]:
    """Read the class names that Hugging Face's `datasets` stores in a table's metadata, if it has any."""
    return next(_class_labels(features_of(path).get(FIELDS[0])), [])


def _class_labels(features: Any) -> Iterator[list[str]]:
    if isinstance(features, Mapping):
        if features.get("_type") == "ClassLabel" and isinstance(features.get("names"), list):
            yield list(map(str, features["names"]))
        for part in features.values():
            yield from _class_labels(part)
    elif isinstance(features, list):
        for part in features:
            yield from _class_labels(part)
