"""Folders of label maps, PNG files whose values are classes: ADE20K, COCO-Stuff, Cityscapes, VOC, and any other.

Sources: Zhou et al. 2017 (ADE20K), 150 classes of SceneParse150; Caesar et al. 2018 (COCO-Stuff), 171 of 182 ids;
Cordts et al. 2016 (Cityscapes), 19 of 34 ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vfm.base import UserError
from vfm.data.annotated.records import (
    IGNORED,
    NOT_ALLOWED,
    AnnotatedImage,
    Annotation,
    BadAnnotation,
    Classes,
    Label,
    ListedImages,
)
from vfm.data.annotated.voc import VOC_CLASSES, split_stems
from vfm.data.layouts.folder import image_names
from vfm.storage import files

VALUES = 256
RIM = 255  # value of unlabelled pixels
ADE20K_CLASSES = 150
STUFF_IDS = 182
STUFF_HOLES = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})  # ids that COCO removed
CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
CITYSCAPES_IDS = 34


@dataclass
class LabelMaps(ListedImages):
    """Reader of pictures with a label map each."""

    names: Sequence[str] = ()
    format: str = "label_maps"

    def __post_init__(self) -> None:
        self.labels: list[Label] = ["semantic"]
        self.classes = Classes.numbered(self.names)

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield nothing: the maps are read when they are needed."""
        return iter(())


def ade20k(root: str, split: str) -> LabelMaps:
    """Return the reader of ADEChallengeData2016: value 0 is other and is ignored, 1 to 150 are the classes."""
    table = f"{root}/objectInfo150.txt"
    rows = [line.split("\t") for line in files.read_text(table).splitlines()[1:]] if files.exists(table) else []
    names = [row[-1].strip() for row in rows] or [f"class {number}" for number in range(1, ADE20K_CLASSES + 1)]
    values = [IGNORED, *range(len(names))]
    return _paired(f"{root}/images/{split}", f"{root}/annotations/{split}", names, values, "ade20k")


def coco_stuff(images: str, maps: str, labels: str | None) -> LabelMaps:
    """Return the reader of COCO-Stuff's maps: value v is id v + 1; 11 of the ids do not exist, 255 is ignored.

    Args:
        images: folder of the pictures.
        maps: folder of the PNG files.
        labels: COCO-Stuff's `labels.txt`, "1: person" in each line; None: classes are named by their ids.
    """
    lines = [line.partition(":") for line in files.read_text(labels).splitlines()] if labels else []
    given = {int(number): name.strip() for number, _, name in lines if number.strip().isdigit()}
    ids = [number for number in range(1, STUFF_IDS + 1) if number not in STUFF_HOLES]
    values = [ids.index(value + 1) if value + 1 in ids else NOT_ALLOWED for value in range(STUFF_IDS)]
    names = [given.get(number, f"id {number}") for number in ids]
    return _paired(images, maps, names, values, "coco_stuff")


def cityscapes(root: str, split: str) -> LabelMaps:
    """Return the reader of Cityscapes' `labelIds`: 19 of the 34 ids are evaluated, the others are ignored."""
    images = f"{root}/leftImg8bit/{split}"
    listed = []
    for number, name in enumerate(image_names(images)):
        stem = name.rpartition("_leftImg8bit")[0]
        path = f"{root}/gtFine/{split}/{stem}_gtFine_labelIds.png"
        listed.append(AnnotatedImage(stem, f"{images}/{name}", number, label_map=path))
    trained = list(CITYSCAPES)
    values = [trained.index(value) if value in CITYSCAPES else IGNORED for value in range(CITYSCAPES_IDS)]
    return LabelMaps(listed, map_classes=_padded(values), names=list(CITYSCAPES.values()), format="cityscapes")


def voc_maps(root: str, split: str) -> LabelMaps:
    """Return the reader of VOC's `SegmentationClass`: palette images, 0 is the background, 255 the rim of objects."""
    stems = split_stems(root, "Segmentation", split)
    listed = [
        AnnotatedImage(stem, f"{root}/JPEGImages/{stem}.jpg", number, label_map=f"{root}/SegmentationClass/{stem}.png")
        for number, stem in enumerate(stems)
    ]
    names = ["background", *VOC_CLASSES]
    return LabelMaps(listed, map_classes=_padded(range(len(names))), names=names, format="voc_maps")


def folder_maps(images: str, maps: str, names: Sequence[str]) -> LabelMaps:
    """Return the reader of any two folders: a value is its class, 255 is ignored; only pictures with a map count."""
    return _paired(images, maps, names, range(len(names)), "label_maps")


def _paired(images: str, maps: str, names: Sequence[str], values: Sequence[int], form: str) -> LabelMaps:
    if len(values) > RIM:
        raise UserError(f"{maps}: expected at most {RIM} classes in maps of 8 bits, got {len(values)}")
    stems = {name.rpartition(".")[0]: name for name in image_names(images)}
    found = {name.removesuffix(".png") for name in files.walk(maps) if name.endswith(".png")}
    listed = [stem for stem in stems if stem in found]
    if not listed:
        first = ", ".join(islice(stems, 2))
        raise UserError(f"{maps}: no PNG file has the name of a picture in {images} ({first}, ...)")
    pictures = [
        AnnotatedImage(stem, f"{images}/{stems[stem]}", number, label_map=f"{maps}/{stem}.png")
        for number, stem in enumerate(listed)
    ]
    return LabelMaps(pictures, map_classes=_padded(values), names=list(names), format=form)


def _padded(values: Sequence[int]) -> list[int]:
    """Return the class of each value of 8 bits: 255 is ignored, others without a class are not allowed."""
    return [*values, *[NOT_ALLOWED] * (RIM - len(values)), IGNORED]
