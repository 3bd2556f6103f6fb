"""Recognise annotated images: folders of VOC, YOLO, COCO, ADE20K and Cityscapes, COCO's json, and conversations."""

from __future__ import annotations

from typing import Any

import yaml

from vfm.base import UserError
from vfm.data.annotated.marks import DATA_YAML, MARKS
from vfm.data.layouts.coco_captions import HEAD
from vfm.storage import files

EDGE = 1 << 18  # bytes at the beginning and the end of a json file by which it is recognised
OBJECTS = (b'"bbox"', b'"segments_info"', b'"segmentation"')
CONVERSATIONS = b'"conversations"'  # of LLaVA
FIFTYONE = "labels.json"  # next to the folder `data`, in FiftyOne's exports
YAML = (".yaml", ".yml")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}


def annotated_fields(path: str) -> dict[str, Any] | None:
    """Choose the fields of `data.annotated` for a folder, COCO's json, or YOLO's yaml. Other files give None."""
    if path.endswith(YAML):
        return _yolo_fields(path)
    if holds_objects(path):
        return _json_fields(path)
    root = path.rstrip("/")
    if not files.is_directory(root):
        return None
    names = files.names_in(root)
    if holds_objects(f"{root}/{FIFTYONE}"):
        return {"path": path, "annotations": f"{root}/{FIFTYONE}"}
    for name in sorted(names):
        if name.endswith(".json") and holds_objects(f"{root}/{name}"):
            return {"path": path, "annotations": f"{root}/{name}"}
    instances = _instances(f"{root}/annotations")
    if instances:
        return _json_fields(instances)
    if not any(has(root) for has in MARKS.values()):
        return None
    described = _yolo_fields(f"{root}/{DATA_YAML}") if DATA_YAML in names else None
    return described or {"path": path}


def validation_fields(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Find the other split of annotated images that are used for training, if there is one."""
    split = fields.get("split", "train")
    annotations = fields.get("annotations", "")
    if "train" in annotations:
        other = annotations.replace("train", "val")
        if not files.exists(other):
            return None
        return {**_json_fields(other), "kind": fields["kind"]}
    record = _read_yaml(f"{fields['path'].rstrip('/')}/{DATA_YAML}")
    if split == "train" and isinstance(record.get("val"), str):
        return {**fields, "split": "val"}
    return None


def holds_objects(path: str) -> bool:
    """Check whether a file is COCO's json with boxes, masks or segments, and not with captions."""
    if not _is_json_file(path) or not HEAD.match(files.read_bytes(path, 0, 1 << 12)):
        return False
    edges = _edges(path)
    return b'"images"' in edges and b'"caption"' not in edges and any(mark in edges for mark in OBJECTS)


def holds_conversations(path: str) -> bool:
    """Check whether a file is LLaVA's json: a list of conversations about images."""
    if not _is_json_file(path):
        return False
    first = files.read_bytes(path, 0, EDGE)
    return first.lstrip().startswith(b"[") and CONVERSATIONS in first


def _is_json_file(path: str) -> bool:
    return files.without_query(path).endswith(".json") and files.exists(path) and not files.is_directory(path)


def _edges(path: str) -> bytes:
    size = files.size_and_time(path)[0]
    return files.read_bytes(path, 0, min(size, EDGE)) + files.read_bytes(path, max(0, size - EDGE), size)


def _instances(folder: str) -> str | None:
    """Find a json file with objects in a folder, preferably of training images and of instances."""
    if not files.exists(folder):
        return None
    names = files.names_in(folder)
    for name in sorted(names, key=lambda name: ("train" not in name, "instances" not in name, name)):
        if name.endswith(".json") and holds_objects(f"{folder}/{name}"):
            return f"{folder}/{name}"
    return None


def _json_fields(path: str) -> dict[str, Any]:
    """Choose the fields for COCO's json.

    They have the folder with the images, and the split that the file's name ends in.
    """
    folder, _, name = path.rpartition("/")
    root = folder or "."
    if root.rsplit("/", 1)[-1] == "annotations":
        root = root.rpartition("/")[0] or "."
    split = name.removesuffix(".json").rsplit("_", 1)[-1]
    fields = {"path": root, "annotations": path}
    has_split = files.is_directory(f"{root}/{split}") or files.is_directory(f"{root}/images/{split}")
    if not has_split:
        return fields
    return {**fields, "split": split}


def _yolo_fields(path: str) -> dict[str, Any] | None:
    """Choose the fields for a dataset that Ultralytics' yaml describes, if it has class names."""
    record = _read_yaml(path)
    if "names" not in record:
        return None
    folder = path.rpartition("/")[0] or "."
    named = str(record.get("path") or "").rstrip("/")
    candidates = [] if named in ("", ".") else [f"{folder}/{named}", named]
    root = next(filter(files.is_directory, candidates), folder)
    fields: dict[str, Any] = {"path": root}
    if root == folder:
        return fields
    return {**fields, "names": path}


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        record = yaml.safe_load(files.read_text(path))
    except (yaml.YAMLError, OSError, UserError):
        return {}
    return record if isinstance(record, dict) else {}
