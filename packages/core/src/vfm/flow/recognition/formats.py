"""Recognise the files at a path, and choose the stage that imports them and its fields."""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import islice
from typing import Any

from vfm.base import UserError
from vfm.data.choices.pair_benchmarks import PAIR_COLUMNS
from vfm.data.layouts.coco_captions import is_coco_captions
from vfm.data.layouts.folder import image_names
from vfm.data.layouts.layout import Layout, find_layout
from vfm.data.samples.captions import clean_captions, decode_json
from vfm.data.samples.images import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from vfm.data.samples.sample import BadSample
from vfm.data.tables.fiftyone_labels import is_fiftyone_labels
from vfm.data.tables.hub_files import DEFAULT, only_split
from vfm.data.tables.table import CAPTION_COLUMNS, table_columns
from vfm.data.tar.scan import scan_tar
from vfm.flow.recognition.annotations import annotated_fields, holds_conversations
from vfm.flow.recognition.tables import table_fields
from vfm.storage import files

TAR_KINDS = {"cls": "data.labeled", "npy": "data.tagged", "txt": "data.pairs", "json": "data.pairs"}
TAR_SAMPLES = 3  # that are looked at
Fields = dict[str, Any]  # fields of a stage, as in a recipe


def recognise(path: str) -> Fields:
    """Choose the stage that imports the files at a path, and the fields that its defaults do not find.

    Raises:
        UserError: If the path does not exist, or has no supported format.
    """
    if _holds_videos(path):
        return {"kind": "data.videos", "path": path}
    annotated = annotated_fields(path)
    if annotated:
        return {"kind": "data.annotated", **annotated}
    if holds_conversations(path):
        return {"kind": "mllm.questions", "path": path}
    if _holds_choices(path):
        return {"kind": "data.choices", "path": path}
    layout = find_layout(path, "auto", None)
    first = layout.paths[0]
    if layout.kind == "folder":
        return {"kind": "data.labeled" if _in_class_folders(first) else "data.pairs", "path": path}
    if layout.kind == "coco":
        return {"kind": "data.pairs", "path": path}
    fields = tar_fields(first) if layout.kind == "webdataset" else table_fields(layout)
    if fields["kind"] == "data.labeled":
        fields |= _split_in(layout)
    return {"kind": fields["kind"], "path": path, **fields}


def split_at(path: str) -> Fields:
    """Choose the split of `data.labeled` for a path, if it is a folder with another split than the default only."""
    with suppress(UserError):  # reported when the recipe is checked
        return _split_in(find_layout(path, "auto", None))
    return {}


def _split_in(layout: Layout) -> Fields:
    split = only_split(layout.paths) if layout.folder and layout.kind in ("table", "parquet") else None
    return {} if split in (None, DEFAULT) else {"split": split}


def _holds_videos(path: str) -> bool:
    """Check whether a folder or a tar has videos among its first files."""
    if files.without_query(path).endswith(".tar") and files.exists(path):
        return bool((scan_tar(path, ["image"], VIDEO_EXTENSIONS, limit=3).places[:, 0, 0] >= 0).any())
    if not files.is_directory(path):
        return False
    return any(name.lower().endswith(VIDEO_EXTENSIONS) for name in islice(files.walk(path), 8))


def _holds_choices(path: str) -> bool:
    """Check whether a path holds caption choices, in a format of `data.choices`."""
    if files.without_query(path).endswith(".jsonl"):
        first = files.read_bytes(path, 0, 1 << 16).decode(errors="replace").split("\n", 1)[0]
        keys = set(re.findall(r'"(\w+)"', first))  # the line may be cut off, and is no valid JSON then
        return "statements" in keys or _has_pair_columns(keys)
    if files.without_query(path).endswith(".parquet"):
        return _has_pair_columns(set(table_columns(path)))
    if files.is_directory(path):
        if files.exists(f"{path}/metadata.json") and files.is_directory(f"{path}/images"):  # NaturalBench-Retrieval
            return True
        names = list(islice(files.walk(path), 8))
        return bool(names) and all(name.endswith(".json") for name in names)
    return path.endswith(".json") and not is_coco_captions(path) and not is_fiftyone_labels(path)


def _has_pair_columns(names: set[str]) -> bool:
    return any(map(names.issuperset, PAIR_COLUMNS))


def _in_class_folders(folder: str) -> bool:
    """Check whether the first image is in a subfolder, without a caption next to it."""
    first = image_names(folder)[0]
    return "/" in first and not files.exists(f"{folder.rstrip('/')}/{first.rpartition('.')[0]}.txt")


def tar_fields(path: str) -> dict[str, Any]:
    """Choose the kind of stage that imports a tar, and the place of captions that are only in its json.

    Raises:
        UserError: If its images have neither labels nor captions.
    """
    slots = ["image", *TAR_KINDS]
    places = scan_tar(path, slots, IMAGE_EXTENSIONS, limit=TAR_SAMPLES).places
    present = [slot for number, slot in enumerate(slots) if slot in TAR_KINDS and (places[:, number, 0] >= 0).any()]
    if not present:
        raise UserError(f"{path}: its images have neither labels (cls, npy) nor captions (txt, json)")
    if present != ["json"]:
        return {"kind": TAR_KINDS[present[0]]}
    for start, size in places[:, slots.index("json")].tolist():
        if start >= 0:
            with suppress(BadSample):  # reported when the sample is read
                record = decode_json(files.read_bytes(path, start, start + size), path)
                field = _caption_field(record, path)
                if field:
                    return {"kind": "data.pairs", "texts": {"en": f"json.{field}"}}
                if "cls" in record or "label" in record:
                    return {"kind": "data.labeled", "label_key": f"json.{'cls' if 'cls' in record else 'label'}"}
    return {"kind": "data.pairs"}


def _caption_field(record: dict[str, Any], path: str) -> str:
    """Find the field of a json record with captions, if it has one of the usual names."""
    for name in CAPTION_COLUMNS:
        if name in record and clean_captions(record[name], path):
            return name
    return ""
