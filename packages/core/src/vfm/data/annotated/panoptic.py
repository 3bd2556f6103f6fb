"""COCO's panoptic annotations: a json file with the segments of each picture, and a PNG with their ids as colours.

Source: Kirillov et al. 2019, Panoptic segmentation (arXiv:1801.00868); the format at cocodataset.org.
"""

# H, W height and width

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.annotated.coco import classes_of, parse_images, stream
from vfm.data.annotated.masks import encode_mask
from vfm.data.annotated.records import Annotation, BadAnnotation, Label, ListedImages
from vfm.data.samples.images import open_image
from vfm.storage import files


@dataclass
class PanopticJson(ListedImages):
    """Reader of a panoptic json file; each segment becomes a mask that overlaps no other."""

    path: str = ""
    image_root: str = ""
    has_images: bool = True
    format: str = "coco_panoptic"

    def __post_init__(self) -> None:
        self.classes = classes_of(list(stream(self.path, "categories")), self.path)
        self.labels: list[Label] = ["boxes", "masks", "semantic", "panoptic"]
        annotated = {_number(one, "image_id") for one in stream(self.path, "annotations")} | {None}
        images = [one for one in stream(self.path, "images") if _number(one, "id") in annotated]
        self.listed = parse_images(images, self.image_root, self.path, self.has_images)
        self.maps = map_folder(self.path)

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the segments, picture by picture."""
        places = {picture.image_id: place for place, picture in enumerate(self.listed)}
        for one in stream(self.path, "annotations"):
            where = f"{self.maps}/{one.get('file_name')}"
            image = _number(one, "image_id")
            if image is None or (picture := places.get(image)) is None:
                yield BadAnnotation("unknown_image", where)
                continue
            try:
                ids = read_segment_ids(where)
            except BadAnnotation as bad:
                yield bad
                continue
            if ids.shape[::-1] != sizes[picture]:
                yield BadAnnotation("bad_mask", where)
                continue
            if not isinstance(segments := one.get("segments_info"), list):
                yield BadAnnotation("bad_mask", where)
                continue
            yield from _segments(segments, ids, picture, where)


def read_segment_ids(path: str) -> NDArray[np.int32]:
    """Return the id of each pixel's segment, R + 256 G + 65536 B; 0: unlabelled, (H, W).

    Raises:
        BadAnnotation: the file is missing, or is no image.
    """
    try:
        image = np.asarray(open_image(files.read_bytes(path), path).convert("RGB"), dtype=np.int32)
    except Exception:  # as in `read_map`
        raise BadAnnotation("broken_file", path) from None
    return np.asarray(image[..., 0] | image[..., 1] << 8 | image[..., 2] << 16)


def _number(one: Any, key: str) -> int | None:
    """Return the whole number at a key of an entry, None if there is none."""
    value = one.get(key) if isinstance(one, dict) else None
    return value if isinstance(value, int) else None


def _segments(
    segments: Sequence[Any], ids: NDArray[np.int32], picture: int, where: str
) -> Iterator[Annotation | BadAnnotation]:
    found = set(np.unique(ids).tolist()) - {0}
    for segment in segments:
        number, category = _number(segment, "id"), _number(segment, "category_id")
        place = f"{where}: segment {number}"
        if number not in found:
            yield BadAnnotation("bad_mask", place)
            continue
        found.remove(number)
        if category is None:
            yield BadAnnotation("unknown_class", place)
            continue
        counts, crowd = encode_mask(ids == number), bool(segment.get("iscrowd"))
        yield Annotation(picture, category, place, segmentation=counts, crowd=crowd)
    for number in sorted(found):  # pixels that no segment describes
        yield BadAnnotation("unknown_class", f"{where}: segment {number}")


def map_folder(path: str) -> str:
    """Return the folder of the PNG files: named as the json, `masks` beside it, or its own folder.

    Raises:
        UserError: none of them has the first file, or the json names none.
    """
    parent, _, name = path.rpartition("/")
    folders = [f"{parent or '.'}/{name.split('.')[0]}", f"{parent or '.'}/masks", parent or "."]
    first = next(stream(path, "annotations"), None)
    if not isinstance(first, dict) or not first.get("file_name"):
        raise UserError(f"{path}: expected `annotations` with a `file_name`, as in COCO's panoptic json")
    for folder in folders:
        if files.exists(f"{folder}/{first['file_name']}"):
            return folder
    raise UserError(f"{path}: {first['file_name']} is in none of {', '.join(folders)}")
