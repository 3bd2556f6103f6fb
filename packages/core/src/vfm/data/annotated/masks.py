"""Encode, decode and measure masks as COCO's compressed run lengths.

A mask is the `counts` of COCO's run-length string, as bytes. It has the height and width of its image.

Source: the COCO API, github.com/cocodataset/cocoapi, called through faster-coco-eval.
"""

# H, W height and width of the image, N masks

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from vfm.data.annotated.records import BadAnnotation

MIN_COORDINATES = 6  # three points; with two, a polygon has no area
# No image is this wide. The library walks along each edge, which at 1e7 takes seconds and a gigabyte.
MAX_COORDINATE = 100_000


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """Encode a mask, (H, W)."""
    # COCO's runs go down the columns.
    return bytes(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])


def decode_mask(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Decode a mask.

    Args:
        counts: Run lengths in COCO's compressed form.
        height: Height of the image.
        width: Width of the image.

    Returns:
        (H, W).
    """
    return np.asarray(coco_mask.decode(as_rle(counts, height, width)), dtype=bool)


def as_rle(counts: bytes, height: int, width: int) -> dict[str, Any]:
    """Wrap a mask in the dictionary that COCO's functions take."""
    return {"size": [height, width], "counts": counts}


def mask_area(counts: bytes, height: int, width: int) -> float:
    """Count the pixels of a mask."""
    return float(coco_mask.area(as_rle(counts, height, width)))


def mask_box(counts: bytes, height: int, width: int) -> tuple[float, float, float, float]:
    """Compute the smallest box around a mask, (left, top, right, bottom)."""
    left, top, w, h = np.asarray(coco_mask.toBbox(as_rle(counts, height, width))).tolist()
    return left, top, left + w, top + h


def encode_segmentation(value: Any, height: int, width: int, where: str) -> bytes:
    """Encode a COCO `segmentation`. Polygons with fewer than three points are dropped.

    Args:
        value: Polygons, run lengths as a list, or a run-length string.
        height: Height of the image.
        width: Width of the image.
        where: Address of the annotation, for messages.

    Raises:
        BadAnnotation: If no polygon is left, or the runs do not fit the image.
    """
    if isinstance(value, dict):
        return _encode_runs(value, height, width, where)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadAnnotation("bad_mask", where)
    polygons = list(filter(_is_polygon, value))
    if not polygons:
        raise BadAnnotation("bad_polygon", where)
    return bytes(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"])


def _is_polygon(value: Any) -> bool:
    if not isinstance(value, Sequence) or len(value) < MIN_COORDINATES or len(value) % 2:
        return False
    return all(isinstance(number, int | float) and abs(number) <= MAX_COORDINATE for number in value)


def _encode_runs(value: dict[str, Any], height: int, width: int, where: str) -> bytes:
    counts = value.get("counts")
    size = value.get("size")
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise BadAnnotation("bad_mask", where)
    if isinstance(counts, str | bytes):
        encoded = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
        runs = _runs_of(encoded)
        # The library does not check the runs, and would read past the end of the image.
        if runs is None or sum(runs) != height * width or min(runs) < 0:
            raise BadAnnotation("bad_mask", where)
        return encoded
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        raise BadAnnotation("bad_mask", where)
    if sum(counts) != height * width:
        raise BadAnnotation("bad_mask", where)
    return bytes(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"])


def _runs_of(counts: bytes) -> list[int] | None:
    """Decode the runs of a run-length string. A broken one gives None.

    Each character has five bits. From the fourth run on, the string stores differences to the run before the last.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        if len(runs) > 2:
            number += runs[-2]
        runs.append(number)
        number = shift = 0
    return runs if runs and not shift else None
