"""Read COCO's `instances` JSON, LVIS and Objects365. Files of any size are streamed.

Each list is read in a pass from the beginning of the file, so the lists may come in any order. Categories and images
are kept in memory, annotations are not.

Sources: the format at cocodataset.org, and LVIS (arXiv:1908.03195) for the federated lists.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
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
from vfm.storage.finite_json import FiniteJson

NUM_TRIED = 50  # images that are looked for to find the rule of their paths
OBJECTS365 = "objects365"
SHOWN = 80  # characters of a wrong entry in a message
NEGATIVES = "neg_category_ids"
NOT_EXHAUSTIVE = "not_exhaustive_category_ids"
ID_LISTS = (NEGATIVES, NOT_EXHAUSTIVE)
MAX_OPEN = 1000  # brackets that one part of the file may leave open


@dataclass
class CocoJson(ListedImages):
    """Reader of a JSON file (or `.json.gz`)."""

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
        first_image = images[0] if images else {}
        self.federated = "neg_category_ids" in first_image
        self.format = "coco"
        if self.federated:
            self.format = "lvis"
        elif OBJECTS365 in str(first_image.get("file_name", "")):
            self.format = OBJECTS365
        self.labels: list[Label] = ["boxes"]
        if any("segmentation" in entry for entry in islice(stream(self.path, "annotations"), NUM_TRIED)):
            self.labels.append("masks")

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the annotations in the order of the file."""
        index_of = self.index_by_id()
        for entry in stream(self.path, "annotations"):
            yield _annotation(entry, index_of)


def stream(path: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a list in a JSON file, one at a time.

    Some tools write NaN, Infinity and too large numbers. Such a file is read again with null in their place.

    Raises:
        UserError: If the file is missing or not readable as JSON, or an entry is not an object.
    """
    count = 0
    try:
        try:
            for entry in _parsed(path, name, lambda file: file):
                count += 1
                yield entry
        except ijson.JSONError:
            yield from islice(_parsed(path, name, FiniteJson), count, None)
    except (ijson.JSONError, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: not readable as JSON: {' '.join(str(error).split())}") from None


def _parsed(path: str, name: str, view: Callable[[IO[bytes]], Any]) -> Iterator[dict[str, Any]]:
    with _open_json(path) as file:
        for entry in ijson.items(_Shallow(path, view(file)), f"{name}.item", use_float=True):
            if not isinstance(entry, dict):
                raise UserError(f"{path}: expected objects in `{name}`, got {str(entry)[:SHOWN]}")
            yield entry


class _Shallow:
    """A JSON file that ijson reads in parts. Rejects parts in which many brackets open and few close.

    For each open bracket ijson keeps a name as long as its path, so a hundred thousand nested lists take gigabytes.
    """

    def __init__(self, path: str, file: Any) -> None:
        self.path = path
        self.file = file

    def read(self, size: int = -1) -> bytes:
        part: bytes = self.file.read(size)
        opened = part.count(b"[") + part.count(b"{")
        closed = part.count(b"]") + part.count(b"}")
        if opened - closed > MAX_OPEN:
            raise UserError(f"{self.path}: not readable as JSON: nested more than {MAX_OPEN:,} times")
        return part


def classes_of(categories: Sequence[dict[str, Any]], path: str) -> Classes:
    """Parse COCO's `categories`, sorted by id. The ids need not be consecutive.

    Raises:
        UserError: If a category has no id or name, or an id is repeated.
    """
    names: list[str] = []
    ids: list[int] = []
    things: list[bool] = []
    frequency: list[str] = []
    try:
        for category in sorted(categories, key=lambda category: int(category["id"])):
            names.append(str(category["name"]))
            ids.append(int(category["id"]))
            things.append(bool(category.get("isthing", 1)))
            if "frequency" in category:
                frequency.append(str(category["frequency"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: expected categories with `id` and `name`") from None
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: two categories have one id")
    return Classes(names, ids, things, frequency if len(frequency) == len(names) else [])


def parse_images(
    images: Sequence[dict[str, Any]], image_root: str, path: str, has_images: bool = True
) -> list[AnnotatedImage]:
    """Parse COCO's `images`.

    The rule that locates the first image files is applied to all of them.

    Args:
        images: Entries of the list.
        image_root: Folder of the image files.
        path: The JSON file, for messages.
        has_images: Whether image files are needed.

    Raises:
        UserError: If all images lack their id or name, an id is repeated, or none of the first images is below
            `image_root`.
    """
    rule = _path_rule(images[:NUM_TRIED], image_root, path) if has_images else 0
    parsed = []
    if images and not any(map(_is_named, images)):
        expected = "expected images with `id` and `file_name` or `coco_url`"
        raise UserError(f"{path}: {expected}, got {str(images[0])[:SHOWN]}")
    for number, entry in enumerate(images):
        names = _names(entry)
        image_id = entry.get("id")
        if not names or not isinstance(image_id, int):
            where = f"{path}: images[{number}]"
            # Annotations refer to images by id, so an image without one gets a negative number.
            parsed.append(AnnotatedImage(where, "", -1 - number, problem=BadSample("unreadable_row", where)))
            continue
        name = names[min(rule, len(names) - 1)]
        key = name.rpartition(".")[0]
        file = f"{image_root}/{name}" if has_images else ""
        reason = _problem(entry)
        if reason:
            problem = BadSample(reason, f"{path}: image {image_id}")
            parsed.append(AnnotatedImage(key, file, image_id, problem=problem))
            continue
        size = None
        if entry.get("width") and entry.get("height"):
            size = (int(entry["width"]), int(entry["height"]))
        negatives = tuple(entry.get(NEGATIVES) or ())
        not_exhaustive = tuple(entry.get(NOT_EXHAUSTIVE) or ())
        image = AnnotatedImage(key, file, image_id, size, negatives=negatives, not_exhaustive=not_exhaustive)
        parsed.append(image)
    check_ids(parsed, path)
    return parsed


def _is_named(image: dict[str, Any]) -> bool:
    return bool(_names(image)) and isinstance(image.get("id"), int)


def _path_rule(images: Sequence[dict[str, Any]], image_root: str, path: str) -> int:
    """Find the first rule, an index into `_names`, by which some image file exists."""
    candidates = list(map(_names, images))
    for rule in range(max(map(len, candidates), default=1)):
        for names in candidates:
            if rule < len(names) and files.exists(f"{image_root}/{names[rule]}"):
                return rule
    tried = ", ".join(candidates[0]) if candidates else ""
    raise UserError(f"{path}: none of the first images is in {image_root}: {tried}")


def _problem(image: dict[str, Any]) -> Reason | None:
    """Explain why the size of an image or its lists of classes cannot be used."""
    for key in ("width", "height"):
        side = image.get(key) or 0
        if not is_number(side) or side < 0:
            return "wrong_size"
    for key in ID_LISTS:
        ids = image.get(key) or []
        if not isinstance(ids, list):
            return "unknown_label"
        if not all(isinstance(class_id, int) for class_id in ids):
            return "unknown_label"
    return None


def _names(image: dict[str, Any]) -> list[str]:
    """List the paths that an image may have.

    LVIS v1 has only COCO's URL, and Objects365 has a longer path.
    """
    names = []
    for address in (image.get("file_name"), image.get("coco_url")):
        if not address:
            continue
        parts = str(address).rsplit("://", 1)[-1].replace("\\", "/").split("/")
        for count in (len(parts), 3, 2, 1):
            if count <= len(parts):
                names.append("/".join(parts[-count:]))
    return list(filter(files.is_inside, dict.fromkeys(names)))


def _annotation(entry: dict[str, Any], index_of: dict[int, int]) -> Annotation | BadAnnotation:
    where = f"annotation {entry.get('id')}"
    image_id = entry.get("image_id")
    category = entry.get("category_id")
    if not isinstance(image_id, int) or image_id not in index_of:
        return BadAnnotation("unknown_image", f"{where} (image {image_id})")
    if not isinstance(category, int):
        return BadAnnotation("unknown_class", where)
    numbers = entry.get("bbox")
    area = entry.get("area")
    identity = entry.get("id")
    box = None
    # A box may be missing, it is then the box of the mask.
    if numbers is not None:
        if not isinstance(numbers, list) or len(numbers) != 4 or not all(map(is_number, numbers)):
            return BadAnnotation("bad_box", where)
        box = box_of(*numbers)
    return Annotation(
        index_of[image_id],
        category,
        where,
        box,
        segmentation=entry.get("segmentation") or None,
        area=area if is_number(area) else None,
        crowd=bool(entry.get("iscrowd")),
        ignored=bool(entry.get("ignore")),
        identity=identity if isinstance(identity, int) else None,
    )


@contextmanager
def _open_json(path: str) -> Iterator[IO[bytes]]:
    try:
        file = files.open_binary(path)
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror or error}") from None
    with file:
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if files.without_query(path).endswith(".gz") else file
