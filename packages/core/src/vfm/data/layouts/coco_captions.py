"""COCO's captions, `captions_train2017.json`: one JSON file with `images` and `annotations`, beside their folder."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from vfm.base import UserError
from vfm.data.samples.sample import BadSample
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import ImageEntry, Row, entry_of_rows
from vfm.storage import files

CAPTION = "caption"  # field of an annotation
PREFIX = "captions_"  # before the name of the split in the file's name
HEAD = re.compile(rb'\s*\{\s*"(?:info|images|annotations|licenses|type)"')
NUM_TRIED = 20  # images with which their folder is looked for


def is_coco_captions(path: str) -> bool:
    """Return whether a file is COCO's JSON with captions, and not one with boxes.

    Raises:
        UserError: it begins as such a file, and is damaged.
    """
    if not path.endswith(".json") or files.is_directory(path) or not HEAD.match(files.read_bytes(path, 0, 1 << 12)):
        return False
    annotations = _record(path)[1]
    return any(isinstance(one, dict) and CAPTION in one for one in annotations[:NUM_TRIED])


def captions_in_folder(folder: str, names: list[str]) -> list[str]:
    """Return the only file of COCO's captions among a folder's files, in a list; none if there are several."""
    found = [f"{folder.rstrip('/')}/{name}" for name in names if name.startswith(PREFIX) and name.endswith(".json")]
    return found if len(found) == 1 and is_coco_captions(found[0]) else []


def coco_entries(path: str, image_root: str, spec: DatasetSpec) -> Iterator[ImageEntry]:
    """Yield each image with its captions, in the order of the file.

    Captions without an image are bad samples, one for each image that is missing.

    Args:
        path: the JSON file.
        image_root: folder of the images; empty: the one beside the file that has them.
        spec: its texts name fields of an annotation.

    Raises:
        UserError: the file is damaged, or the images are not found.
    """
    images, annotations = _record(path)
    rows: defaultdict[str, list[Row | BadSample]] = defaultdict(list)
    for number, one in enumerate(annotations):
        if isinstance(one, dict) and isinstance(key := one.get("image_id"), int | str):
            rows[str(key)].append(one)  # some files write the numbers of one list as texts
        else:
            yield ImageEntry("", path, problem=BadSample("unreadable_row", f"{path}: annotations[{number}]"))
    root = image_root or _image_folder(path, images)
    for number, image in enumerate(images):
        name, key = (image.get("file_name"), image.get("id")) if isinstance(image, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(key, int | str):
            yield ImageEntry("", path, problem=BadSample("unreadable_row", f"{path}: images[{number}]"))
        else:
            yield entry_of_rows(name, rows.pop(str(key), [{}]), root, spec, path)
    for key in rows:
        yield ImageEntry("", path, problem=BadSample("missing_image", f"{path}: image_id {key}"))
    _read.cache_clear()  # the records of train2017 take half a gigabyte, which no later stage needs


def _image_folder(path: str, images: list[Any]) -> str:
    folder, _, name = path.rpartition("/")
    folder, split = folder or ".", name.removesuffix(".json").removeprefix(PREFIX)
    parent = folder.rpartition("/")[0] or (".." if folder == "." else ".")
    places = [f"{place}/{one}" for place in (folder, parent) for one in (split, f"images/{split}", "images")]
    named = [one["file_name"] for one in images[:NUM_TRIED] if isinstance(one, dict) and "file_name" in one]
    tried = [str(one) for one in named]
    for place in (*places, folder, parent):
        if any((file := files.join_inside(place, one)) and files.exists(file) for one in tried):
            return place
    raise UserError(f"{path}: no folder beside it has its images, such as {places[0]}; set image_root to their folder")


def _record(path: str) -> tuple[list[Any], list[Any]]:
    return _read(path, *files.size_and_time(path))


@lru_cache(maxsize=1)  # a plan, a preflight and the index read the same file
def _read(path: str, size: int, time: int) -> tuple[list[Any], list[Any]]:
    try:
        record = json.loads(files.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {' '.join(str(error).split())}") from None
    found = [record.get(key) if isinstance(record, dict) else None for key in ("images", "annotations")]
    if not all(isinstance(one, list) for one in found):
        raise UserError(f"{path}: expected lists `images` and `annotations`, as COCO's files have")
    images, annotations = found
    assert isinstance(images, list)
    assert isinstance(annotations, list)
    return images, annotations
