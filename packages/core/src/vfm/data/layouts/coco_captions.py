"""Read COCO's captions from a JSON file with `images` and `annotations` near the images."""

from __future__ import annotations

import fnmatch
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from vfm.base import UserError
from vfm.data.ledger.account import Account
from vfm.data.samples.sample import BadSample
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import ImageEntry, Row, entry_of_rows
from vfm.storage import files

CAPTION = "caption"  # field of an annotation
PREFIX = "captions_"  # before the name of the split in the file's name
SUBFOLDER = "annotations"
HEAD = re.compile(rb'\s*\{\s*"(?:info|images|annotations|licenses|type)"')
NUM_TRIED = 20  # images with which their folder is looked for


def is_coco_captions(path: str) -> bool:
    """Check whether a file is COCO's JSON with captions, and not with boxes.

    Raises:
        UserError: If the file begins as such a file, but is damaged.
    """
    if (
        not files.without_query(path).endswith(".json")
        or files.is_directory(path)
        or not HEAD.match(files.read_bytes(path, 0, 1 << 12))
    ):
        return False
    annotations = _record(path)[1]
    return any(isinstance(entry, dict) and CAPTION in entry for entry in annotations[:NUM_TRIED])


def captions_in_folder(folder: str, names: list[str]) -> list[str]:
    """Find the file with COCO's captions in a folder, or in its subfolder `annotations`.

    The list is empty if there are several such files.
    """
    paths = _named_captions(folder, names)
    return paths if len(paths) == 1 and is_coco_captions(paths[0]) else []


def caption_files(folder: str, names: list[str]) -> list[str]:
    """List the files with COCO's captions in a folder, or else in its subfolder `annotations`."""
    return list(filter(is_coco_captions, _named_captions(folder, names)))


def _named_captions(folder: str, names: list[str]) -> list[str]:
    root = folder.rstrip("/")
    candidates = fnmatch.filter(names, f"{PREFIX}*.json")
    if not candidates and files.is_directory(f"{root}/{SUBFOLDER}"):
        root = f"{root}/{SUBFOLDER}"
        candidates = fnmatch.filter(files.names_in(root), f"{PREFIX}*.json")
    return [f"{root}/{name}" for name in candidates]


def coco_entries(path: str, image_root: str, spec: DatasetSpec, account: Account | None = None) -> Iterator[ImageEntry]:
    """Yield each image with its captions, in the order of the file.

    Captions without an image give a bad sample for each missing image.

    Args:
        path: The JSON file.
        image_root: Folder of the images. Empty: a folder near the file that has them.
        spec: Spec whose texts name fields of an annotation.
        account: Receives the sample of each record: the images of the file, then its annotations.

    Raises:
        UserError: If the file is damaged, or the images are not found.
    """
    images, annotations = _record(path)
    account = account or Account(path, "records")
    rows: defaultdict[str, list[Row | BadSample]] = defaultdict(list)
    numbers: defaultdict[str, list[int]] = defaultdict(list)  # of the records of each image
    for number, annotation in enumerate(annotations, start=len(images)):
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(key, int | str):
            rows[str(key)].append(annotation)  # some files have numbers in one list and texts in the other
            numbers[str(key)].append(number)
        else:
            account.give(number, number + 1)
            where = f"{path}: annotations[{number - len(images)}]"
            yield ImageEntry("", path, problem=BadSample("unreadable_row", where))
    root = image_root or _image_folder(path, images)
    for number, image in enumerate(images):
        name = key = None
        account.give(number, number + 1)
        if isinstance(image, dict):
            name = image.get("file_name")
            key = image.get("id")
        if not isinstance(name, str) or not isinstance(key, int | str):
            yield ImageEntry("", path, problem=BadSample("unreadable_row", f"{path}: images[{number}]"))
        else:
            # An image without captions gets an empty row, and so is reported like any other missing caption.
            _give(account, numbers.pop(str(key), []))
            yield entry_of_rows(name, rows.pop(str(key), [{}]), root, spec, path)
    for key in rows:
        _give(account, numbers[key])
        yield ImageEntry("", path, problem=BadSample("missing_image", f"{path}: image_id {key}"))
    account.size = len(images) + len(annotations)
    _read.cache_clear()  # the records of train2017 take half a gigabyte, and no later stage needs them


def _give(account: Account, numbers: Iterable[int]) -> None:
    for number in numbers:
        account.give(number, number + 1)


def _image_folder(path: str, images: list[Any]) -> str:
    folder, _, name = path.rpartition("/")
    folder = folder or "."
    split = name.removesuffix(".json").removeprefix(PREFIX)
    parent = folder.rpartition("/")[0] or (".." if folder == "." else ".")
    candidates = []
    for base in (folder, parent):
        candidates += [f"{base}/{split}", f"{base}/images/{split}", f"{base}/images"]
    names = []
    for entry in images[:NUM_TRIED]:
        if isinstance(entry, dict) and "file_name" in entry:
            names.append(str(entry["file_name"]))
    for candidate in (*candidates, folder, parent):
        for name in names:
            file = files.join_inside(candidate, name)
            if file and files.exists(file):
                return candidate
    raise UserError(
        f"{path}: no folder near it has its images, such as {candidates[0]}; set image_root to their folder"
    )


def _record(path: str) -> tuple[list[Any], list[Any]]:
    return _read(path, *files.size_and_time(path))


@lru_cache(maxsize=1)  # a plan, a preflight and the index read the same file
def _read(path: str, size: int, time: int) -> tuple[list[Any], list[Any]]:
    try:
        record = json.loads(files.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {' '.join(str(error).split())}") from None
    if not isinstance(record, dict):
        record = {}
    images = record.get("images")
    annotations = record.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise UserError(f"{path}: expected lists `images` and `annotations`, as COCO's files have")
    return images, annotations
