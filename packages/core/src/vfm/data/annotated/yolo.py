"""Read YOLO's text files. A line has the class of an object and a box or a polygon, in fractions of the sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from vfm.base import UserError
from vfm.data.annotated.records import AnnotatedImage, Annotation, BadAnnotation, Classes, Label, ListedImages, box_of
from vfm.data.layouts.folder import image_names
from vfm.data.samples.spec import MAX_CLASSES
from vfm.storage import files

BOX, POLYGON = 5, 7  # numbers in a line with a box, and the least numbers in a line with a polygon


@dataclass
class YoloFolder(ListedImages):
    """Reader of a folder of images and a folder of text files with the same names. No file means no objects."""

    images: str = ""
    texts: str = ""
    classes: Classes = field(default_factory=lambda: Classes.numbered(()))
    format: str = "yolo"

    def __post_init__(self) -> None:
        self.listed = [
            AnnotatedImage(name.rpartition(".")[0], f"{self.images}/{name}", number)
            for number, name in enumerate(image_names(self.images))
        ]
        self.labels: list[Label] = ["boxes"]
        if any(map(self._has_polygon, self.listed[:50])):
            self.labels.append("masks")

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects, image by image."""
        for number, (image, size) in enumerate(zip(self.listed, sizes, strict=True)):
            for row, line in enumerate(self._lines(image), 1):
                yield _object(line, number, size, f"{self._path(image)}: line {row}")

    def _has_polygon(self, image: AnnotatedImage) -> bool:
        return any(len(line.split()) >= POLYGON for line in self._lines(image))

    def _path(self, image: AnnotatedImage) -> str:
        return f"{self.texts}/{image.key}.txt"

    def _lines(self, image: AnnotatedImage) -> list[str]:
        path = self._path(image)
        if not files.exists(path):
            return []
        return list(filter(str.strip, files.read_text(path).splitlines()))


def read_classes(path: str) -> Classes:
    """Read the classes in a YAML file.

    They are a list of names, or a mapping from numbers, under `names` or `classes`. Numbers that the mapping leaves out
    are not classes.

    Raises:
        UserError: If the file has no names, or a number that is too large to be a class.
    """
    record = read_yaml(path)
    names = record.get("names", record.get("classes"))
    if isinstance(names, list):
        return Classes.numbered(list(map(str, names)))
    if not isinstance(names, dict) or not names or not all(map(_is_class_number, names)):
        raise UserError(f"{path}: expected class names below `names`")
    largest = max(names)
    if largest >= MAX_CLASSES:
        raise UserError(f"{path}: expected numbers of classes below {MAX_CLASSES:,}, got {largest}")
    numbers = sorted(names)
    return Classes([str(names[number]) for number in numbers], numbers)


def _is_class_number(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def read_yaml(path: str) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        UserError: If the file is missing, is not YAML, or is not a mapping.
    """
    try:
        record = yaml.safe_load(files.read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a mapping")
    return record


def _object(line: str, image_index: int, size: tuple[int, int], where: str) -> Annotation | BadAnnotation:
    try:
        label, *numbers = map(float, line.split())
    except ValueError:
        return BadAnnotation("bad_box", where)
    if not label.is_integer():  # also NaN and infinity
        return BadAnnotation("unknown_class", where)
    width, height = size
    if len(numbers) == BOX - 1:
        x, y, w, h = numbers
        box = box_of((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        return Annotation(image_index, int(label), where, box)
    if len(numbers) < POLYGON - 1 or len(numbers) % 2:
        return BadAnnotation("bad_polygon", where)
    polygon = [number * size[index % 2] for index, number in enumerate(numbers)]
    return Annotation(image_index, int(label), where, segmentation=[polygon])
