"""Recognise folders of annotated images by the names of their files. This needs no optional library."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from vfm.storage import files

DATA_YAML = "data.yaml"  # of a dataset in YOLO's layout
DARKNET_NAMES = "obj.names"  # names of the classes in Darknet's layout of YOLO
CVAT_HEAD = b"<annotations>"


def _has(*names: str) -> Callable[[str], bool]:
    return lambda root: all(files.exists(f"{root}/{name}") for name in names)


def _has_voc(root: str) -> bool:
    """Check for the folders of VOC, or of FiftyOne's export of it."""
    if _has("JPEGImages", "Annotations")(root):
        return True
    if not _has("data", "labels")(root):
        return False
    return any(name.endswith(".xml") for name in islice(files.walk(f"{root}/labels"), 3))


def cvat_xml(root: str) -> str | None:
    """Find the XML file of CVAT in a folder, if there is one."""
    for name in sorted(files.names_in(root)):
        path = f"{root}/{name}"
        if name.endswith(".xml") and CVAT_HEAD in files.read_bytes(path, 0, 1 << 10):
            return path
    return None


MARKS: dict[str, Callable[[str], bool]] = {
    "voc": _has_voc,
    "cvat": lambda root: cvat_xml(root) is not None,
    "darknet": _has(DARKNET_NAMES),
    "cityscapes": _has("leftImg8bit", "gtFine"),
    "ade20k": _has("objectInfo150.txt", "images", "annotations"),
    "coco_stuff": _has("stuffthingmaps"),
    "yolo": lambda root: _has("labels", "images")(root) or _has(DATA_YAML)(root),
}
