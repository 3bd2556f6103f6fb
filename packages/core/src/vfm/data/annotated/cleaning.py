"""Clip and measure single annotations, and report a reason for unusable ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

from vfm.data.annotated.masks import encode_segmentation, mask_area, mask_box
from vfm.data.annotated.records import Annotation, BadAnnotation, Box
from vfm.data.annotated.tables import ObjectRow
from vfm.data.ledger.account import USED

Skip = Callable[[BadAnnotation], None]


def clean_annotations(
    annotations: Iterable[Annotation | BadAnnotation],
    sizes: Sequence[tuple[int, int]],
    labels: Mapping[int, int],
    skip: Skip,
    bad_images: Container[int] = (),
    uses: list[str] | None = None,
) -> Iterator[ObjectRow]:
    """Yield the usable annotations as rows. Annotations of classes that the user left out are skipped.

    Args:
        annotations: Annotations of all images, in any order.
        sizes: Width and height of each image.
        labels: Label of each class id of the source. -1 marks a class that was left out.
        skip: Called with each unusable annotation.
        bad_images: Images that cannot be used, so that their annotations cannot be used either.
        uses: Receives the use of each annotation, for the ledger.
    """
    uses = [] if uses is None else uses
    for annotation in annotations:
        try:
            if isinstance(annotation, BadAnnotation):
                raise annotation
            if annotation.class_id not in labels:
                raise BadAnnotation("unknown_class", f"{annotation.where} (class {annotation.class_id})")
            if annotation.image_index in bad_images:
                raise BadAnnotation("bad_image", annotation.where)
            label = labels[annotation.class_id]
            row = clean(annotation, label, *sizes[annotation.image_index]) if label >= 0 else None
        except BadAnnotation as bad:
            uses.append(bad.reason)
            skip(bad)
            continue
        uses.append(USED if row else "class_left_out")
        if row:
            yield row


def clean(annotation: Annotation, label: int, width: int, height: int) -> ObjectRow:
    """Convert an annotation to a row.

    Its mask is encoded, its box clipped to the image, and its area taken or computed.

    Args:
        annotation: Object as its file describes it.
        label: Number of its class.
        width: Width of the image.
        height: Height of the image.

    Raises:
        BadAnnotation: If the box is empty, not finite or outside the image, or the mask does not fit.
    """
    counts = None
    if isinstance(annotation.segmentation, bytes):
        counts = annotation.segmentation
    elif annotation.segmentation is not None:
        counts = encode_segmentation(annotation.segmentation, height, width, annotation.where)
    box = annotation.box
    if box is None:
        if counts is None:
            raise BadAnnotation("bad_box", annotation.where)
        box = mask_box(counts, height, width)
    box = clip_box(box, width, height, annotation.where)
    area = annotation.area
    if area is None or not math.isfinite(area) or area < 0:
        # The area of the mask and not of the box, because COCO's small, medium and large refer to it.
        if counts:
            area = mask_area(counts, height, width)
        else:
            area = (box[2] - box[0]) * (box[3] - box[1])
    return ObjectRow(
        annotation.image_index, label, box, counts, area, annotation.crowd, annotation.ignored, annotation.identity
    )


def clip_box(box: Box, width: int, height: int, where: str) -> Box:
    """Clip a box to the image.

    Args:
        box: (left, top, right, bottom) in pixels.
        width: Width of the image.
        height: Height of the image.
        where: Address of the annotation, for messages.

    Raises:
        BadAnnotation: If the box has no area, has numbers that are not finite, or is outside the image.
    """
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)) or right <= left or bottom <= top:
        raise BadAnnotation("bad_box", where)
    left = max(left, 0.0)
    top = max(top, 0.0)
    right = min(right, width)
    bottom = min(bottom, height)
    if right <= left or bottom <= top:
        raise BadAnnotation("box_outside_image", where)
    return left, top, right, bottom
