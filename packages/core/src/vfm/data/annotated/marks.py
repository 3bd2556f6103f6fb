"""Recognise folders of annotated images by the names of their files. It needs no optional library."""

from __future__ import annotations

from collections.abc import Callable

from vfm.storage import files

DATA_YAML = "data.yaml"  # of a dataset in YOLO's layout


def _has(*names: str) -> Callable[[str], bool]:
    return lambda root: all(files.exists(f"{root}/{name}") for name in names)


MARKS: dict[str, Callable[[str], bool]] = {
    "voc": _has("JPEGImages", "Annotations"),
    "cityscapes": _has("leftImg8bit", "gtFine"),
    "ade20k": _has("objectInfo150.txt", "images", "annotations"),
    "coco_stuff": _has("stuffthingmaps"),
    "yolo": lambda root: _has("labels", "images")(root) or _has(DATA_YAML)(root),
}
