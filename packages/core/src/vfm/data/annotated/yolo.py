"""YOLO's text files: a line per object with the class and a box or a polygon, in fractions of the picture's sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vfm.base import UserError
from vfm.data.annotated.records import (
    AnnotatedImage,
    Annotation,
    BadAnnotation,
    Classes,
    Label,
    ListedImages,
    box_of,
)
from vfm.data.layouts.folder import image_names
from vfm.data.samples.spec import MAX_CLASSES
from vfm.storage import files

BOX, POLYGON = 5, 7  # numbers of a line with a box, and the fewest of one with a polygon


@dataclass
class YoloFolder(ListedImages):
    """Reader of a folder of images and one of text files of the same names; a picture without a file has no objects."""

    images: str = ""
    texts: str = ""
    names: Sequence[str] = ()
    format: str = "yolo"

    def __post_init__(self) -> None:
        self.classes = Classes.numbered(self.names)
        found = image_names(self.images)
        self.listed = [
            AnnotatedImage(name.rpartition(".")[0], f"{self.images}/{name}", number)
            for number, name in enumerate(found)
        ]
        lengths = {len(line.split()) for one in self.listed[:50] for line in self._lines(one)}
        self.labels: list[Label] = ["boxes", "masks"] if any(length >= POLYGON for length in lengths) else ["boxes"]

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects, picture by picture."""
        for number, (picture, size) in enumerate(zip(self.listed, sizes, strict=True)):
            for row, line in enumerate(self._lines(picture), 1):
                yield _object(line, number, size, f"{self._path(picture)}: line {row}")

    def _path(self, picture: AnnotatedImage) -> str:
        return f"{self.texts}/{picture.key}.txt"

    def _lines(self, picture: AnnotatedImage) -> list[str]:
        path = self._path(picture)
        return [line for line in files.read_text(path).splitlines() if line.strip()] if files.exists(path) else []


def read_names(path: str) -> list[str]:
    """Return the class names of a yaml file: a list, or a mapping from 0, 1, ..., below `names` or `classes`.

    Numbers without a name get their number as a name.

    Raises:
        UserError: the file has none, or a number that is no class.
    """
    record = read_yaml(path)
    names = record.get("names", record.get("classes"))
    if isinstance(names, list):
        return [str(name) for name in names]
    if not isinstance(names, dict) or not all(isinstance(number, int) and number >= 0 for number in names) or not names:
        raise UserError(f"{path}: expected class names below `names`")
    if (largest := max(names)) >= MAX_CLASSES:
        raise UserError(f"{path}: expected numbers of classes below {MAX_CLASSES:,}, got {largest}")
    return [str(names.get(number, number)) for number in range(largest + 1)]


def read_yaml(path: str) -> dict[str, Any]:
    """Return the mapping of a yaml file.

    Raises:
        UserError: the file is missing, is not YAML, or has no mapping.
    """
    try:
        record = yaml.safe_load(files.read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a mapping")
    return record


def _object(line: str, picture: int, size: tuple[int, int], where: str) -> Annotation | BadAnnotation:
    try:
        label, *numbers = (float(word) for word in line.split())
    except ValueError:
        return BadAnnotation("bad_box", where)
    if not label.is_integer():  # also NaN and infinity
        return BadAnnotation("unknown_class", where)
    width, height = size
    if len(numbers) == BOX - 1:
        x, y, w, h = numbers
        box = box_of((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        return Annotation(picture, int(label), where, box)
    if len(numbers) < POLYGON - 1 or len(numbers) % 2:
        return BadAnnotation("bad_polygon", where)
    polygon = [number * (width, height)[place % 2] for place, number in enumerate(numbers)]
    return Annotation(picture, int(label), where, segmentation=[polygon])
