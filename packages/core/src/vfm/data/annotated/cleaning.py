"""Checks of single annotations: what cannot be used is one of a few reasons, what can is clipped and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from vfm.data.annotated.masks import encode_segmentation, mask_area, mask_box
from vfm.data.annotated.records import Annotation, BadAnnotation, Box
from vfm.data.annotated.tables import ObjectRow

Skip = Callable[[BadAnnotation], None]


def clean_annotations(
    annotations: Iterable[Annotation | BadAnnotation],
    sizes: Sequence[tuple[int, int]],
    labels: Mapping[int, int],
    skip: Skip,
) -> Iterator[ObjectRow]:
    """Yield the usable annotations as rows; classes that the user left out are passed over.

    Args:
        annotations: of all pictures, in any order.
        sizes: width and height of each picture.
        labels: label of each class id of the source; -1: the class was left out.
        skip: called with each annotation that cannot be used.
    """
    for one in annotations:
        try:
            if isinstance(one, BadAnnotation):
                raise one
            if one.class_id not in labels:
                raise BadAnnotation("unknown_class", f"{one.where} (class {one.class_id})")
            if (label := labels[one.class_id]) >= 0:
                yield clean(one, label, *sizes[one.picture])
        except BadAnnotation as bad:
            skip(bad)


def clean(one: Annotation, label: int, width: int, height: int) -> ObjectRow:
    """Return an annotation as a row: its mask encoded, its box within the picture, its area that of the source.

    Raises:
        BadAnnotation: the box is empty, not finite or outside the picture, or the mask does not fit.
    """
    counts = None
    if one.segmentation is not None:
        given = one.segmentation
        counts = given if isinstance(given, bytes) else encode_segmentation(given, height, width, one.where)
    box = one.box
    if box is None:
        if counts is None:
            raise BadAnnotation("bad_box", one.where)
        box = mask_box(counts, height, width)
    box = clip_box(box, width, height, one.where)
    area = one.area
    if area is None or not math.isfinite(area) or area < 0:
        # COCO's small, medium and large refer to the mask's area.
        area = mask_area(counts, height, width) if counts else (box[2] - box[0]) * (box[3] - box[1])
    return ObjectRow(one.picture, label, box, counts, area, one.crowd, one.ignored, one.identity)


def clip_box(box: Box, width: int, height: int, where: str) -> Box:
    """Return a box without its part outside the picture.

    Raises:
        BadAnnotation: the box has no area, numbers that are not finite, or no part inside.
    """
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)) or right <= left or bottom <= top:
        raise BadAnnotation("bad_box", where)
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        raise BadAnnotation("box_outside_image", where)
    return left, top, right, bottom
