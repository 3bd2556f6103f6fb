"""Samples with objects in their own record: WebDataset's `jpg + json`, and Hugging Face's tables with `objects`.

A record has COCO's `annotations`, or `objects`, a list by field; also `width`, `height`, `image_id` and LVIS' lists if
they are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.data.annotated.object_records import class_names_in, objects_in
from vfm.data.annotated.records import (
    AnnotatedImage,
    Annotation,
    BadAnnotation,
    Classes,
    Label,
    check_ids,
)
from vfm.data.index.source import Source
from vfm.data.layouts.layout import Layout
from vfm.data.samples.shards import Found
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.parquet import features_of

NUM_READ = 200  # samples that are read for the kinds of labels
FIELDS = ("objects", "width", "height", "image_id")  # columns of Hugging Face's tables, and keys of a json

Record = dict[str, Any]


@dataclass
class SampleRecords:
    """Reader of tars and of Parquet files; classes that are not given are the names or numbers that occur."""

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
            names = _names_in_schema(self.layout.paths[0]) if self.format == "hugging_face" else []
            self.classes = Classes.numbered(names or class_names_in(self._all(), self.layout.paths[0]))
        if not self.labels:
            first = [
                one
                for record in islice(self._all(), NUM_READ)
                for one in objects_in(record, self.classes, 0, "", self.box_format)
            ]
            if not first:
                raise UserError(f"{self.layout.paths[0]}: no objects found; expected `annotations` or `objects`")
            masks = any(isinstance(one, Annotation) and one.segmentation is not None for one in first)
            self.labels = ["boxes", "masks"] if masks else ["boxes"]

    def shards(self, directory: Path) -> Iterator[Found]:
        """Yield the user's files."""
        yield from self.layout.shards(directory, self.spec)

    def list_images(self, source: Source | None) -> list[AnnotatedImage]:
        """Return the samples; a picture's id is that of its record, else its number."""
        if source is None:
            raise UserError(f"{self.layout.paths[0]}: images: false needs annotations in files of their own")
        self._source = source
        keys = source.keys
        found = [self._picture(number, keys[number], record) for number, record in enumerate(self._of_samples())]
        check_ids(found, self.layout.paths[0])
        return found

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects of all samples."""
        for number, record in enumerate(self._of_samples()):
            if record is not None:  # else the sample is a bad one
                yield from objects_in(record, self.classes, number, self._source.where(number), self.box_format)

    def _picture(self, number: int, key: str, record: Record | None) -> AnnotatedImage:
        facts = record or {}
        width, height = facts.get("width"), facts.get("height")
        size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        given = facts.get("image_id")
        negatives, partly = (_numbers(facts.get(f"{name}_category_ids")) for name in ("neg", "not_exhaustive"))
        return AnnotatedImage(key, "", given if isinstance(given, int) else number, size, negatives, partly)

    def _of_samples(self) -> Iterator[Record | None]:
        """Yield the record of each sample of the source, None if it is broken."""
        index = self._source.index
        for shard in range(len(index.shards)):
            yield from index.open(shard).records(index.rows(shard).tolist(), FIELDS)

    def _all(self) -> Iterator[Record]:
        assert self.layout.reader
        for path in self.layout.paths:
            reader = self.layout.reader.open(self.layout.reader.find(path)[0], self.spec)
            yield from (record for record in reader.records(range(len(reader)), FIELDS) if record is not None)


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(one for one in value if isinstance(one, int)) if isinstance(value, list) else ()


def _names_in_schema(path: str) -> list[str]:
    """Return the class names that Hugging Face's `datasets` stores in a table's metadata, if it has any."""
    return next(_class_labels(features_of(path).get(FIELDS[0])), [])


def _class_labels(features: Any) -> Iterator[list[str]]:
    if isinstance(features, Mapping):
        if features.get("_type") == "ClassLabel" and isinstance(features.get("names"), list):
            yield [str(name) for name in features["names"]]
        for part in features.values():
            yield from _class_labels(part)
    elif isinstance(features, list):
        for part in features:
            yield from _class_labels(part)
