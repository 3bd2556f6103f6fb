"""COCO's `instances` json, and what shares its form: LVIS, Objects365. Files of any size are streamed.

A file is read from its beginning for each of its lists, so that lists in any order need no memory: the categories and
images are held, the annotations are not.

Sources: the format at cocodataset.org; LVIS (arXiv:1908.03195) for the federated lists.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, cast

import ijson

from vfm.base import UserError
from vfm.data.annotated.records import (
    AnnotatedImage,
    Annotation,
    BadAnnotation,
    Classes,
    Label,
    ListedImages,
    box_of,
    check_ids,
    is_number,
)
from vfm.data.samples.sample import BadSample, Reason
from vfm.storage import files

NUM_TRIED = 50  # pictures that are looked for to find the rule of their paths
OBJECTS365 = "objects365"
SHOWN = 80  # characters of a wrong entry in a message
ID_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
MAX_OPEN = 1000  # brackets of a part that stay open


@dataclass
class CocoJson(ListedImages):
    """Reader of one json file (or json.gz)."""

    path: str = ""
    image_root: str = ""
    has_images: bool = True

    def __post_init__(self) -> None:
        categories = list(stream(self.path, "categories"))
        if not categories:
            raise UserError(f"{self.path}: no categories found; expected COCO's json")
        self.classes = classes_of(categories, self.path)
        images = list(stream(self.path, "images"))
        self.listed = parse_images(images, self.image_root, self.path, self.has_images)
        self.federated = bool(images) and "neg_category_ids" in images[0]
        name = str(images[0].get("file_name", "")) if images else ""
        self.format = "lvis" if self.federated else OBJECTS365 if OBJECTS365 in name else "coco"
        first = islice(stream(self.path, "annotations"), NUM_TRIED)
        self.labels: list[Label] = ["boxes", "masks"] if any("segmentation" in one for one in first) else ["boxes"]

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the annotations in the order of the file."""
        places = {picture.image_id: place for place, picture in enumerate(self.listed)}
        for one in stream(self.path, "annotations"):
            yield _annotation(one, places)


def stream(path: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of one list of a json file, one at a time.

    Raises:
        UserError: the file is missing or not readable as JSON, or an entry is no object.
    """
    with _open_json(path) as file:
        try:
            for one in ijson.items(_Shallow(path, file), f"{name}.item", use_float=True):
                if not isinstance(one, dict):
                    raise UserError(f"{path}: expected objects in `{name}`, got {str(one)[:SHOWN]}")
                yield one
        except (ijson.JSONError, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise UserError(f"{path}: not readable as JSON: {' '.join(str(error).split())}") from None


class _Shallow:
    """A JSON file that ijson reads in parts, refused where many brackets open and none close.

    ijson keeps a name for each open bracket, as long as the path to it: lists nested a hundred thousand times take
    gigabytes.
    """

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self.path, self.file = path, file

    def read(self, size: int = -1) -> bytes:
        part = self.file.read(size)
        if sum(map(part.count, (b"[", b"{"))) - sum(map(part.count, (b"]", b"}"))) > MAX_OPEN:
            raise UserError(f"{self.path}: not readable as JSON: nested more than {MAX_OPEN:,} times")
        return part


def classes_of(categories: Sequence[dict[str, Any]], path: str) -> Classes:
    """Return the classes of COCO's `categories`, sorted by id; ids may have holes.

    Raises:
        UserError: a category has no id or name, or an id is repeated.
    """
    try:
        found = sorted(categories, key=lambda one: int(one["id"]))
        names, ids = [str(one["name"]) for one in found], [int(one["id"]) for one in found]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: expected categories with `id` and `name`") from None
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: two categories have one id")
    frequency = [str(one["frequency"]) for one in found] if all("frequency" in one for one in found) else []
    return Classes(names, ids, [bool(one.get("isthing", 1)) for one in found], frequency)


def parse_images(
    images: Sequence[dict[str, Any]], image_root: str, path: str, has_images: bool = True
) -> list[AnnotatedImage]:
    """Return the pictures of COCO's `images`; their paths follow the rule by which the first ones are found.

    Raises:
        UserError: an image lacks its id or name, an id is repeated, or none of the first is below `image_root`.
    """
    rule = 0
    if has_images:
        tried = [_names(one) for one in images[:NUM_TRIED]]
        rules = range(max(map(len, tried), default=1))
        found = (n for n in rules for names in tried if n < len(names) and files.exists(f"{image_root}/{names[n]}"))
        if (rule := next(found, -1)) < 0:
            raise UserError(
                f"{path}: none of the first pictures is in {image_root}: {', '.join(tried[0] if tried else [])}"
            )
    pictures = []
    for one in images:
        names = _names(one)
        if not names or not isinstance(one.get("id"), int):
            raise UserError(f"{path}: expected images with `id` and `file_name` or `coco_url`, got {str(one)[:SHOWN]}")
        name = names[min(rule, len(names) - 1)]
        key, image = name.rpartition(".")[0], f"{image_root}/{name}" if has_images else ""
        if reason := _problem(one):
            pictures.append(
                AnnotatedImage(key, image, one["id"], problem=BadSample(reason, f"{path}: image {one['id']}"))
            )
            continue
        size = (int(one["width"]), int(one["height"])) if one.get("width") and one.get("height") else None
        negatives, not_exhaustive = (tuple(one.get(key) or ()) for key in ID_LISTS)
        pictures.append(AnnotatedImage(key, image, one["id"], size, negatives=negatives, not_exhaustive=not_exhaustive))
    check_ids(pictures, path)
    return pictures


def _problem(image: dict[str, Any]) -> Reason | None:
    """Return why the size of an entry or its lists of classes cannot be used, or None."""
    if not all(is_number(side := image.get(key) or 0) and side >= 0 for key in ("width", "height")):
        return "wrong_size"
    lists = [image.get(key) or [] for key in ID_LISTS]
    fit = all(isinstance(ids, list) and all(isinstance(one, int) for one in ids) for ids in lists)
    return None if fit else "unknown_label"


def _names(image: dict[str, Any]) -> list[str]:
    """Return the paths that a picture may have: LVIS v1 has COCO's address only, Objects365 a longer path."""
    names = []
    for address in (image.get("file_name"), image.get("coco_url")):
        parts = str(address).rpartition("://")[2].replace("\\", "/").split("/") if address else []
        names += ["/".join(parts[-count:]) for count in (len(parts), 3, 2, 1) if parts and count <= len(parts)]
    return [name for name in dict.fromkeys(names) if files.is_inside(name)]


def _annotation(one: dict[str, Any], places: dict[int, int]) -> Annotation | BadAnnotation:
    where = f"annotation {one.get('id')}"
    image, category = one.get("image_id"), one.get("category_id")
    picture = places.get(image) if isinstance(image, int) else None
    if picture is None:
        return BadAnnotation("unknown_image", f"{where} (image {one.get('image_id')})")
    if not isinstance(category, int):
        return BadAnnotation("unknown_class", where)
    box, area, identity = one.get("bbox"), one.get("area"), one.get("id")
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return BadAnnotation("bad_box", where)
    return Annotation(
        picture,
        category,
        where,
        None if box is None else box_of(*box),
        one.get("segmentation") or None,
        area if is_number(area) else None,
        bool(one.get("iscrowd")),
        bool(one.get("ignore")),
        identity if isinstance(identity, int) else None,
    )


@contextmanager
def _open_json(path: str) -> Iterator[IO[bytes]]:
    try:
        file = files.open_binary(path)
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror or error}") from None
    with file:
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if path.endswith(".gz") else file
