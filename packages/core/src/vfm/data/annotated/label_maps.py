"""Read PNG files whose pixel values are classes, from ADE20K, COCO-Stuff, Cityscapes, VOC and others.

Sources: Zhou et al. 2017 (ADE20K), 150 classes of SceneParse150; Caesar et al. 2018 (COCO-Stuff), 171 of 182 ids;
Cordts et al. 2016 (Cityscapes), 19 of 34 ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vfm.base import UserError
from vfm.data.annotated.label_files import RIM_16
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

VALUES = 256  # of a label map with 8 bits a pixel
RIM = 255  # value of unlabelled pixels
ADE20K_CLASSES = 150  # of the benchmark; the whole dataset has 3,688
STUFF_IDS = 182  # COCO-Stuff's ids go up to 182, with 11 holes
STUFF_HOLES = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})  # ids that COCO removed
CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
IGNORED_NAMES = frozenset({"unlabeled", "unlabelled", "void", "ignore", "ignored"})
CITYSCAPES_IDS = 34  # 0 to 33, of which 19 are evaluated


@dataclass
class LabelMaps(ListedImages):
    """Reader of images with a label map each."""

    names: Sequence[str] = ()
    ids: Sequence[int] = ()  # of the classes; empty: 0, 1, ...
    format: str = "label_maps"

    def __post_init__(self) -> None:
        self.labels: list[Label] = ["semantic"]
        self.classes = Classes.numbered(self.names)
        if self.ids:
            self.classes = Classes(list(self.names), list(self.ids))

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield nothing, because the maps are read when they are needed."""
        return iter(())


def ade20k(root: str, split: str) -> LabelMaps:
    """Open ADEChallengeData2016. Value 0 stands for other pixels and is ignored, 1 to 150 are the classes."""
    table = f"{root}/objectInfo150.txt"
    lines = files.read_text(table).splitlines()[1:] if files.exists(table) else []
    names = [line.split("\t")[-1].strip() for line in lines]
    if not names:
        names = [f"class {number}" for number in range(1, ADE20K_CLASSES + 1)]
    values = [IGNORED, *range(len(names))]
    return _paired(f"{root}/images/{split}", f"{root}/annotations/{split}", names, values, "ade20k")


def coco_stuff(images: str, maps: str, labels: str | None) -> LabelMaps:
    """Open COCO-Stuff's maps. Value v is id v + 1, 11 of the ids do not exist, and 255 is ignored.

    Args:
        images: Folder of the images.
        maps: Folder of the PNG files.
        labels: COCO-Stuff's `labels.txt` with lines such as "1: person". None: classes are named by their ids.
    """
    name_of: dict[int, str] = {}
    for line in files.read_text(labels).splitlines() if labels else []:
        number, _, name = line.partition(":")
        if number.strip().isdigit():
            name_of[int(number)] = name.strip()
    values: list[int] = []
    names: list[str] = []
    for class_id in range(1, STUFF_IDS + 1):
        if class_id in STUFF_HOLES:
            values.append(NOT_ALLOWED)
        else:
            values.append(len(names))
            names.append(name_of.get(class_id, f"id {class_id}"))
    return _paired(images, maps, names, values, "coco_stuff")


def cityscapes(root: str, split: str) -> LabelMaps:
    """Open Cityscapes' `labelIds`. Of the 34 ids, 19 are evaluated and the others are ignored."""
    images = f"{root}/leftImg8bit/{split}"
    listed = []
    for number, name in enumerate(image_names(images)):
        stem = name.rpartition("_leftImg8bit")[0]
        path = f"{root}/gtFine/{split}/{stem}_gtFine_labelIds.png"
        listed.append(AnnotatedImage(stem, f"{images}/{name}", number, label_map=path))
    values = [IGNORED] * CITYSCAPES_IDS
    for label, class_id in enumerate(CITYSCAPES):
        values[class_id] = label
    return LabelMaps(listed, map_classes=_padded(values), names=list(CITYSCAPES.values()), format="cityscapes")


def voc_maps(root: str, split: str) -> LabelMaps:
    """Open VOC's `SegmentationClass`.

    It has palette images, where 0 is the background and 255 the rim of objects.
    """
    stems = split_stems(root, "Segmentation", split)
    listed = []
    for number, stem in enumerate(stems):
        label_map = f"{root}/SegmentationClass/{stem}.png"
        listed.append(AnnotatedImage(stem, f"{root}/JPEGImages/{stem}.jpg", number, label_map=label_map))
    names = ["background", *VOC_CLASSES]
    return LabelMaps(listed, map_classes=_padded(range(len(names))), names=names, format="voc_maps")


def folder_maps(images: str, maps: str, classes: Classes) -> LabelMaps:
    """Open a folder of images and a folder of maps.

    Values are the ids of classes, and 255 is ignored. With more than 255 values the maps have 16 bits, and 65,535 is
    ignored. Values whose name says that they have no class, such as `0: unlabeled`, are ignored too. Images without a
    map are skipped.

    Args:
        images: Folder of the images.
        maps: Folder of the maps.
        classes: Names of the classes by value.
    """
    # Values without a class are not allowed, so that maps of another dataset are reported.
    values = [NOT_ALLOWED] * (max(classes.ids, default=-1) + 1)
    names: list[str] = []
    ids: list[int] = []
    for class_id, name in zip(classes.ids, classes.names, strict=True):
        if name.lower() in IGNORED_NAMES:
            values[class_id] = IGNORED
        else:
            values[class_id] = len(names)
            names.append(name)
            ids.append(class_id)
    return _paired(images, maps, names, values, "label_maps", ids)


def _paired(
    images: str, maps: str, names: Sequence[str], values: Sequence[int], form: str, ids: Sequence[int] = ()
) -> LabelMaps:
    if len(values) > RIM_16:
        raise UserError(f"{maps}: expected at most {RIM_16:,} classes in maps of 16 bits, got {len(values):,}")
    stems = {name.rpartition(".")[0]: name for name in image_names(images)}
    listed: list[AnnotatedImage] = []
    map_stems = {name.removesuffix(".png") for name in files.walk(maps) if name.endswith(".png")}
    for stem, name in stems.items():
        if stem in map_stems:
            label_map = f"{maps}/{stem}.png"
            listed.append(AnnotatedImage(stem, f"{images}/{name}", len(listed), label_map=label_map))
    if not listed:
        first = ", ".join(islice(stems, 2))
        raise UserError(f"{maps}: no PNG file has the name of an image in {images} ({first}, ...)")
    return LabelMaps(listed, map_classes=_padded(values), names=list(names), ids=ids, format=form)


def _padded(values: Sequence[int]) -> list[int]:
    """Extend the classes to all 8-bit values.

    255 is ignored, and other values without a class are not allowed. More classes need maps of 16 bits, where `RIM_16`
    is ignored.
    """
    if len(values) > RIM:
        return list(values)
    return [*values, *[NOT_ALLOWED] * (RIM - len(values)), IGNORED]
