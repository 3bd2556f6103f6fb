"""Parse the objects in a sample's record, as COCO's annotations or as Hugging Face's lists by field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vfm.base import UserError
from vfm.data.annotated.records import Annotation, BadAnnotation, Box, Classes, box_of, is_number
from vfm.data.samples.spec import MAX_CLASSES

CLASS_FIELDS = ("category_id", "category", "categories", "label", "labels", "class")
BOX_FIELDS = ("bbox", "bboxes", "box", "boxes")


def objects_in(
    record: Mapping[str, Any], classes: Classes, image_index: int, where: str, box_format: str
) -> Iterator[Annotation | BadAnnotation]:
    """Yield the objects of a record with `annotations` or `objects`.

    Args:
        record: The sample's record.
        classes: The dataset's classes, to look up names.
        image_index: Number of the sample.
        where: Address of the sample.
        box_format: Order of a box's numbers, in pixels.
    """
    ids = dict(zip(classes.names, classes.ids, strict=True))
    for number, entry in enumerate(_listed(record)):
        yield _object(entry, ids, image_index, f"{where}: object {number}", box_format)


def _object(
    entry: Mapping[str, Any], ids: Mapping[str, int], image_index: int, where: str, box_format: str
) -> Annotation | BadAnnotation:
    class_value = _first(entry, CLASS_FIELDS)
    class_id = ids.get(class_value, -1) if isinstance(class_value, str) else class_value
    if not isinstance(class_id, int) or class_id < 0:
        return BadAnnotation("unknown_class", f"{where} ({class_value!r})")
    numbers = _first(entry, BOX_FIELDS)
    segmentation = entry.get("segmentation") or None
    box = None if numbers is None else read_box(numbers, box_format)
    if box is None and (numbers is not None or segmentation is None):
        return BadAnnotation("bad_box", where)
    area = entry.get("area")
    return Annotation(
        image_index,
        class_id,
        where,
        box,
        segmentation,
        area=float(area) if is_number(area) else None,
        crowd=bool(entry.get("iscrowd") or entry.get("is_crowd")),
        ignored=bool(entry.get("ignore")),
    )


def class_names_in(records: Iterable[Mapping[str, Any]], where: str) -> list[str]:
    """Collect the names of all classes.

    These are the sorted names that occur, or the numbers up to the largest.

    Args:
        records: Records of the samples.
        where: Address of the records.

    Raises:
        UserError: If the largest number is too large to be a class.
    """
    names_seen: set[str] = set()
    largest = -1
    for record in records:
        for entry in _listed(record):
            value = _first(entry, CLASS_FIELDS)
            if isinstance(value, str):
                names_seen.add(value)
            elif isinstance(value, int):
                largest = max(largest, value)
    names = sorted(names_seen)
    if not names and largest >= MAX_CLASSES:
        raise UserError(f"{where}: expected numbers of classes below {MAX_CLASSES:,}, got {largest}; set names")
    return names or list(map(str, range(largest + 1)))


def read_box(numbers: Any, box_format: str) -> Box | None:
    """Convert the four numbers of a box to corners. Anything else gives None."""
    if not isinstance(numbers, Sequence) or len(numbers) != 4 or not all(map(is_number, numbers)):
        return None
    a, b, c, d = map(float, numbers)
    if box_format == "xyxy":
        return a, b, c, d
    if box_format == "cxcywh":
        return box_of(a - c / 2, b - d / 2, c, d)
    return box_of(a, b, c, d)


def _listed(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """List the objects, one mapping for each."""
    objects = record.get("annotations", record.get("objects"))
    if isinstance(objects, Mapping):  # Hugging Face: a list for each field
        entries: list[dict[str, Any]] = []
        for name, values in objects.items():
            if isinstance(values, Sequence):
                for number, value in enumerate(values):
                    if number == len(entries):
                        entries.append({})
                    entries[number][name] = value
        return entries
    if isinstance(objects, Sequence):
        return [entry for entry in objects if isinstance(entry, Mapping)]
    return []


def _first(entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if entry.get(name) is not None:
            return entry[name]
    return None
