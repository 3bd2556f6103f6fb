"""Objects in a sample's record: a list of COCO's annotations, or Hugging Face's lists by field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from vfm.base import UserError
from vfm.data.annotated.records import (
    Annotation,
    BadAnnotation,
    Box,
    Classes,
    box_of,
    is_number,
)
from vfm.data.samples.spec import MAX_CLASSES

BoxFormat = Literal["xywh", "xyxy", "cxcywh"]
CLASS_FIELDS = ("category_id", "category", "categories", "label", "labels", "class")
BOX_FIELDS = ("bbox", "bboxes", "box", "boxes")


def objects_in(
    record: Mapping[str, Any], classes: Classes, picture: int, where: str, box_format: str
) -> Iterator[Annotation | BadAnnotation]:
    """Yield the objects of a record with `annotations` or `objects`.

    Args:
        record: the sample's record.
        classes: to find the class of a name.
        picture: number of the sample.
        where: its address.
        box_format: order of a box's numbers, in pixels.
    """
    ids = dict(zip(classes.names, classes.ids, strict=True))
    for number, one in enumerate(_listed(record)):
        place = f"{where}: object {number}"
        given = _first(one, CLASS_FIELDS)
        class_id = ids.get(given, -1) if isinstance(given, str) else given
        numbers = _first(one, BOX_FIELDS)
        segmentation = one.get("segmentation") or None
        if not isinstance(class_id, int) or class_id < 0:
            yield BadAnnotation("unknown_class", f"{place} ({given!r})")
            continue
        if numbers is None and segmentation is None:
            yield BadAnnotation("bad_box", place)
            continue
        box = None if numbers is None else read_box(numbers, box_format)
        if numbers is not None and box is None:
            yield BadAnnotation("bad_box", place)
            continue
        area = one.get("area")
        yield Annotation(
            picture,
            class_id,
            place,
            box,
            segmentation,
            float(area) if is_number(area) else None,
            bool(one.get("iscrowd") or one.get("is_crowd")),
            bool(one.get("ignore")),
        )


def class_names_in(records: Iterable[Mapping[str, Any]], where: str) -> list[str]:
    """Return the names of all classes: the sorted names that occur, or the numbers up to the largest.

    Raises:
        UserError: the largest number is no class; `where` is the address of the records.
    """
    given = (_first(one, CLASS_FIELDS) for record in records for one in _listed(record))
    found = {one for one in given if isinstance(one, str | int)}
    names = sorted(one for one in found if isinstance(one, str))
    largest = max((one for one in found if isinstance(one, int)), default=-1)
    if not names and largest >= MAX_CLASSES:
        raise UserError(f"{where}: expected numbers of classes below {MAX_CLASSES:,}, got {largest}; set names")
    return names or [str(number) for number in range(largest + 1)]


def read_box(numbers: Any, box_format: str) -> Box | None:
    """Return four numbers as corners, None if they are not four numbers."""
    if not isinstance(numbers, Sequence) or len(numbers) != 4 or not all(map(is_number, numbers)):
        return None
    a, b, c, d = map(float, numbers)
    if box_format == "xyxy":
        return a, b, c, d
    return box_of(a - c / 2, b - d / 2, c, d) if box_format == "cxcywh" else box_of(a, b, c, d)


def _listed(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the objects as one mapping each."""
    found = record.get("annotations", record.get("objects"))
    if isinstance(found, Mapping):  # fields with a list each
        lists = {name: value for name, value in found.items() if isinstance(value, Sequence)}
        length = max(map(len, lists.values()), default=0)
        return [{name: value[n] for name, value in lists.items() if n < len(value)} for n in range(length)]
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, Sequence) else []


def _first(one: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((one[name] for name in names if one.get(name) is not None), None)
