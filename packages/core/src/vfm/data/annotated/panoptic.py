"""Read COCO's panoptic annotations. A JSON file has the segments of each image, and a PNG their ids as colours.

Source: Kirillov et al. 2019, Panoptic segmentation (arXiv:1801.00868), and the format at cocodataset.org.
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
    """Reader of a panoptic JSON file. Segments become masks that do not overlap."""

    path: str = ""
    image_root: str = ""
    has_images: bool = True
    format: str = "coco_panoptic"

    def __post_init__(self) -> None:
        self.classes = classes_of(list(stream(self.path, "categories")), self.path)
        self.labels: list[Label] = ["boxes", "masks", "semantic", "panoptic"]
        annotated = {_number(entry, "image_id") for entry in stream(self.path, "annotations")}
        annotated.add(None)  # keep images without an id, which `parse_images` reports
        images = [entry for entry in stream(self.path, "images") if _number(entry, "id") in annotated]
        self.listed = parse_images(images, self.image_root, self.path, self.has_images)
        self.maps = map_folder(self.path)

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the segments, image by image."""
        index_of = self.index_by_id()
        for entry in stream(self.path, "annotations"):
            where = f"{self.maps}/{entry.get('file_name')}"
            image_id = _number(entry, "image_id")
            if image_id is None or image_id not in index_of:
                yield BadAnnotation("unknown_image", where)
                continue
            try:
                ids = read_segment_ids(where)
            except BadAnnotation as bad:
                yield bad
                continue
            image_index = index_of[image_id]
            segments = entry.get("segments_info")
            if ids.shape[::-1] != sizes[image_index] or not isinstance(segments, list):
                yield BadAnnotation("bad_mask", where)
                continue
            yield from _segments(segments, ids, image_index, where)


def read_segment_ids(path: str) -> NDArray[np.int32]:
    """Read the id of each pixel's segment, R + 256 G + 65536 B, (H, W). 0 is unlabelled.

    Raises:
        BadAnnotation: If the file is missing, or is not an image.
    """
    try:
        image = np.asarray(open_image(files.read_bytes(path), path).convert("RGB"), dtype=np.int32)
    except Exception:  # as in `read_map`
        raise BadAnnotation("broken_file", path) from None
    return np.asarray(image[..., 0] | image[..., 1] << 8 | image[..., 2] << 16)


def _number(entry: Any, key: str) -> int | None:
    """Look up an integer in an entry."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int) else None


def _segments(
    segments: Sequence[Any], ids: NDArray[np.int32], image_index: int, where: str
) -> Iterator[Annotation | BadAnnotation]:
    remaining = set(np.unique(ids).tolist()) - {0}
    for segment in segments:
        number = _number(segment, "id")
        category = _number(segment, "category_id")
        address = f"{where}: segment {number}"
        if number not in remaining:
            yield BadAnnotation("bad_mask", address)
            continue
        remaining.remove(number)
        if category is None:
            yield BadAnnotation("unknown_class", address)
            continue
        counts = encode_mask(ids == number)
        crowd = bool(segment.get("iscrowd"))
        yield Annotation(image_index, category, address, segmentation=counts, crowd=crowd)
    for number in sorted(remaining):  # pixels that no segment describes
        yield BadAnnotation("unknown_class", f"{where}: segment {number}")


def map_folder(path: str) -> str:
    """Find the folder of the PNG files of panoptic maps.

    It is named as the JSON file, or it is `masks` next to it, or the folder it is in.

    Raises:
        UserError: If none of these folders has the first file, or the JSON file names none.
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
