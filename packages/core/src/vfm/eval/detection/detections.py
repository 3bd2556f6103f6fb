"""Detections in a set of images, and files of detections in COCO's results format.

A results file is a JSON list of `{image_id, category_id, score, bbox: [x, y, width, height], segmentation}`, with
`bbox`, a mask as `segmentation` (run lengths), or both. `maskness`, the mean probability inside the mask, is optional.
"""

# N detections

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError, positions
from vfm.data.annotated.masks import as_rle, encode_segmentation, mask_box
from vfm.data.annotated.records import BadAnnotation, box_of
from vfm.data.annotated.source import AnnotatedSource
from vfm.data.annotated.tables import as_indices
from vfm.storage.store_files import reading

LARGEST = 1e9  # limit for numbers in a results file, as the area of a larger box would overflow
SHOWN = 80  # characters of a wrong value in an error message


Row = tuple[int, int, float, Sequence[float], bytes | None, float]
"""Image, label, score, box, counts and maskness of one object."""


@dataclass(frozen=True)
class Detections:
    """Objects that a model found.

    Attributes:
        image: Number of the image of each object, (N,).
        labels: Class of each object, (N,).
        scores: Confidence, (N,).
        boxes: Left, top, right, bottom, (N, 4).
        counts: Masks as run lengths. Objects without a mask have None.
        maskness: Mean probability inside the mask, (N,), 1 where it is unknown.
    """

    image: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    counts: Sequence[bytes | None]
    maskness: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Detections:
        at = as_indices(rows, len(self))
        counts = [self.counts[row] for row in at.tolist()]
        return Detections(self.image[at], self.labels[at], self.scores[at], self.boxes[at], counts, self.maskness[at])

    def with_scores(self, scores: NDArray[np.float64]) -> Detections:
        """Copy the objects with other scores."""
        return replace(self, scores=scores)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Detections:
        """Collect rows into columns."""
        columns = list(zip(*rows, strict=True)) or [()] * 6
        image, labels, scores, boxes, counts, maskness = columns
        return cls(
            np.array(image, dtype=np.int64),
            np.array(labels, dtype=np.int64),
            np.array(scores, dtype=np.float64),
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            list(counts),
            np.array(maskness, dtype=np.float64),
        )


def read_results(path: str | Path, source: AnnotatedSource) -> Detections:
    """Read a results file for the images of a dataset.

    Raises:
        UserError: If the file is not readable, it names an image or class that the dataset does not have, or an object
            has no usable box, mask or score.
    """
    with reading(path, "a list of results"), open(path, "rb") as file:
        records = json.load(file)
    if not isinstance(records, list):
        raise UserError(f"{path}: expected a list of results, got a {type(records).__name__}")
    images = positions(source.image_ids)
    # Ids of classes are the annotation file's, which may have gaps. COCO's 80 classes go up to 90.
    labels = positions(source.dataset.class_ids)
    return Detections.of(_row(record, n, images, labels, source, path) for n, record in enumerate(records))


def write_results_file(path: Path, detections: Detections, source: AnnotatedSource) -> None:
    """Write detections as a results file."""
    records: list[dict[str, Any]] = []
    for row in range(len(detections)):
        image = int(detections.image[row])
        left, top, right, bottom = detections.boxes[row].tolist()
        record = {
            "image_id": source.image_ids[image],
            "category_id": source.dataset.class_ids[int(detections.labels[row])],
            "score": float(detections.scores[row]),
            "bbox": [left, top, right - left, bottom - top],
        }
        counts = detections.counts[row]
        if counts is not None:
            width, height = source.sizes[image]
            record["segmentation"] = {**as_rle(counts, height, width), "counts": counts.decode()}
            record["maskness"] = float(detections.maskness[row])
        records.append(record)
    path.write_text(json.dumps(records) + "\n", encoding="utf-8")


def _row(
    record: Any,
    number: int,
    images: Mapping[int, int],
    labels: Mapping[int, int],
    source: AnnotatedSource,
    path: str | Path,
) -> Row:
    where = f"{path}: result {number}"
    if not isinstance(record, dict) or not _is_number(record.get("score")):
        raise UserError(f"{where}: expected an object with a finite `score`")
    if not _is_number(record.get("maskness", 1.0)):
        raise UserError(f"{where}: expected a finite `maskness`, got {record['maskness']!r}")
    image = _index(record.get("image_id"), images)
    label = _index(record.get("category_id"), labels)
    if image is None:
        raise UserError(f"{where}: the dataset has no image {record.get('image_id')!r}")
    if label is None:
        raise UserError(f"{where}: the dataset has no class {record.get('category_id')!r}")
    width, height = source.sizes[image]
    try:
        segmentation = record.get("segmentation")
        if segmentation:
            counts = encode_segmentation(segmentation, height, width, where)
        else:
            counts = None
    except BadAnnotation as bad:
        raise UserError(f"{where}: {bad.reason}: the mask does not fit an image of {width} x {height}") from None
    # Results of masks may leave out the box. It is then the box of the mask.
    numbers = record.get("bbox")
    if _is_box(numbers):
        box = box_of(*map(float, numbers))
    elif counts is not None and not numbers:
        box = mask_box(counts, height, width)
    else:
        raise UserError(
            f"{where}: expected a `bbox` of four numbers, x, y, width and height, the last two not negative, or a"
            f" `segmentation`, got {str(numbers)[:SHOWN]}"
        )
    return image, label, float(record["score"]), box, counts, float(record.get("maskness", 1.0))


def _is_number(value: Any) -> bool:
    """Check whether a value is a number of usable size. NaN and infinity are not."""
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _is_box(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0


def _index(identity: Any, indices: Mapping[int, int]) -> int | None:
    if not isinstance(identity, int):
        return None
    return indices.get(identity)
