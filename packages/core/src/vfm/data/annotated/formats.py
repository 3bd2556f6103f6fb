"""Choose the reader for annotated images, by the configured format or by the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from vfm.base import UserError, stripped
from vfm.data.annotated.coco import CocoJson, stream
from vfm.data.annotated.cvat import CvatXml
from vfm.data.annotated.label_maps import ade20k, cityscapes, coco_stuff, folder_maps, voc_maps
from vfm.data.annotated.marks import DARKNET_NAMES, DATA_YAML, MARKS, cvat_xml
from vfm.data.annotated.panoptic import PanopticJson
from vfm.data.annotated.records import AnnotationReader, Classes
from vfm.data.annotated.sample_records import SampleRecords
from vfm.data.annotated.stages import Annotated
from vfm.data.annotated.voc import VocFolder
from vfm.data.annotated.yolo import YoloFolder, read_classes, read_yaml
from vfm.data.layouts.layout import Kind, find_layout
from vfm.storage import files
from vfm.storage.path_patterns import expand_paths

LAYOUTS: dict[str, Kind] = {"hugging_face": "parquet", "webdataset": "webdataset"}
COCO_FORMATS = ("coco", "lvis", "objects365")
EXPECTED = (
    "expected COCO's json (instances, panoptic), LVIS, Objects365, VOC, YOLO, CVAT's XML, ADE20K, COCO-Stuff,"
    " Cityscapes, folders of images and of label maps, tars with jpg + json, or Parquet with `objects`"
)


def open_reader(config: Annotated) -> AnnotationReader:
    """Open the annotations with the reader for their format.

    Raises:
        UserError: If the format is not recognised, or its files are missing.
    """
    kind = config.format if config.format != "auto" else recognise(config)
    return READERS[kind](config)


def recognise(config: Annotated) -> str:
    """Recognise the format of the files.

    Raises:
        UserError: If the files have none of the formats.
    """
    root = _root(config)
    if not files.is_directory(root):
        layout = find_layout(config.path, "auto", None)
        if layout.kind in ("webdataset", "parquet"):
            return "webdataset" if layout.kind == "webdataset" else "hugging_face"
        raise UserError(f"{root}: unknown format of annotations; {EXPECTED}")
    if config.annotations:
        return _kind_of_annotations(config.annotations, root)
    for kind, has in MARKS.items():
        if has(root):
            return kind
    path = _json_in(root, config.split)
    if path:
        return _kind_of_json(path)
    for name in files.names_in(root):
        if name.endswith(".tar"):
            return "webdataset"
        if name.endswith(".parquet"):
            return "hugging_face"
    raise UserError(f"{root}: unknown format of annotations; {EXPECTED}")


def _kind_of_annotations(path: str, root: str) -> str:
    if not files.exists(path):
        raise UserError(f"{path}: no such file or folder")
    if files.without_query(path).endswith((".json", ".json.gz")):
        return _kind_of_json(path)
    if path.endswith(".xml"):
        return "cvat"
    if not files.is_directory(path):
        raise UserError(f"{path}: unknown format of annotations; {EXPECTED}")
    if path.rstrip("/").endswith("SegmentationClass"):
        return "voc_maps"
    if "stuffthingmaps" in path:
        return "coco_stuff"
    extensions = {name.rpartition(".")[2] for name in islice(files.walk(path), 20)}
    if "txt" in extensions:
        return "yolo"
    if "png" in extensions:
        return "label_maps"
    raise UserError(f"{path}: found neither txt nor png files; {EXPECTED}")


def _kind_of_json(path: str) -> str:
    first = next(stream(path, "annotations"), {})
    return "coco_panoptic" if "segments_info" in first else "coco"


def _json_in(root: str, split: str) -> str | None:
    """Find the JSON file of a split in a folder, such as `annotations/instances_SPLIT.json` or `lvis_v1_SPLIT.json`."""
    for folder in (f"{root}/annotations", root):
        names = sorted(files.names_in(folder)) if files.is_directory(folder) else []
        jsons = [name for name in names if name.endswith((".json", ".json.gz")) and "caption" not in name]
        candidates = [name for name in jsons if split in name and "keypoints" not in name]
        if not candidates and len(jsons) == 1:
            candidates = jsons
        if candidates:
            best = min(candidates, key=lambda name: ("instances" not in name, name))
            return f"{folder}/{best}"
    return None


def _root(config: Annotated) -> str:
    paths = expand_paths(config.path)
    if not paths:
        raise UserError(f"{config.path}: no such file or folder")
    if not files.exists(paths[0]):
        raise UserError(f"{paths[0]}: no such file or folder")
    return paths[0].rstrip("/")


def _classes(config: Annotated, *candidates: str) -> Classes:
    """Read the classes from the configuration, a YAML file, or the first existing candidate file."""
    if isinstance(config.names, list):
        return Classes.numbered(config.names)
    path = config.names or next(filter(files.exists, candidates), None)
    if path is None:
        raise UserError(
            f"{_root(config)}: the classes have no names; set names to a list, or to a yaml file with `names`"
        )
    return read_classes(path)


def _json_path(config: Annotated) -> str:
    path = config.annotations or _json_in(_root(config), config.split)
    if path is None:
        raise UserError(f"{_root(config)}: no json file of the split {config.split!r}; set annotations")
    return path


def _image_root(config: Annotated) -> str:
    root = _root(config)
    folders = [f"{root}/{config.split}", f"{root}/images/{config.split}", f"{root}/images", f"{root}/data"]
    return next(filter(files.is_directory, folders), root)


def _coco(config: Annotated) -> CocoJson:
    roots = dict.fromkeys((_image_root(config), _root(config)))
    problem: UserError | None = None
    for root in roots:  # LVIS names its images with COCO's folder, the images of others are in the split's folder
        try:
            return CocoJson(path=_json_path(config), image_root=root, has_images=config.images)
        except UserError as error:
            problem = problem or error
    assert problem
    raise problem


def _panoptic(config: Annotated) -> PanopticJson:
    return PanopticJson(path=_json_path(config), image_root=_image_root(config), has_images=config.images)


def _voc(config: Annotated) -> VocFolder:
    names = _classes(config).names if config.names else []
    return VocFolder(root=_root(config), split=config.split, names=names)


def _yolo(config: Annotated) -> YoloFolder:
    root = _root(config)
    yamls = list(_yamls(root))
    classes = _classes(config, *yamls)
    if config.annotations:
        return YoloFolder(images=root, texts=config.annotations.rstrip("/"), classes=classes)
    split = read_yaml(yamls[0]).get(config.split) if yamls else None
    images = _split_folder(root, split) if isinstance(split, str) else _image_root(config)
    if not files.is_directory(images):
        raise UserError(f"{images}: no such folder; set split, or path to the folder of images and annotations")
    texts = "labels".join(images.rsplit("images", 1))
    return YoloFolder(images=images, texts=texts, classes=classes)


def _cvat(config: Annotated) -> CvatXml:
    root = _root(config)
    path = config.annotations or cvat_xml(root)
    if path is None:
        raise UserError(f"{root}: no XML file of CVAT; set annotations")
    return CvatXml(path=path, image_root=_image_root(config), names=_classes(config).names if config.names else [])


def _darknet(config: Annotated) -> YoloFolder:
    """Open Darknet's layout. It has images and texts in one folder, and CVAT calls it YOLO 1.1."""
    root = _root(config)
    names = stripped(files.read_text(f"{root}/{DARKNET_NAMES}").splitlines())
    folder = next(filter(files.is_directory, (f"{root}/obj_{config.split}_data", f"{root}/data")), root)
    return YoloFolder(images=folder, texts=folder, classes=Classes.numbered(names))


def _split_folder(root: str, split: str) -> str:
    """Find the folder of a split. Roboflow writes `../train/images` for a folder next to the yaml."""
    folder = f"{root}/{split}".rstrip("/")
    return folder if files.is_directory(folder) else f"{root}/{split.removeprefix('../')}".rstrip("/")


def _yamls(root: str) -> Iterator[str]:
    """Yield the YAML files with class names in a folder and its parent. Other YAML files are skipped."""
    for folder in (root, root.rpartition("/")[0] or "."):
        for name in sorted(files.names_in(folder)):
            path = f"{folder}/{name}"
            if name == DATA_YAML or (name.endswith((".yaml", ".yml")) and _has_names(path)):
                yield path


def _has_names(path: str) -> bool:
    try:
        return "names" in read_yaml(path)
    except UserError:
        return False


def _ade20k(config: Annotated) -> AnnotationReader:
    split = {"train": "training", "val": "validation"}.get(config.split, config.split)
    return ade20k(_root(config), split)


def _coco_stuff(config: Annotated) -> AnnotationReader:
    root = _root(config)
    maps = config.annotations or f"{root}/stuffthingmaps/{config.split}"
    label_files = [f"{root}/labels.txt", f"{root}/stuffthingmaps/labels.txt"]
    labels = next(filter(files.exists, label_files), None)
    return coco_stuff(_image_root(config), maps.rstrip("/"), labels)


def _label_maps(config: Annotated) -> AnnotationReader:
    if not config.annotations:
        raise UserError("format: label_maps needs annotations, the folder of the PNG files")
    return folder_maps(_root(config), config.annotations.rstrip("/"), _classes(config))


def _samples(config: Annotated) -> SampleRecords:
    layout = find_layout(config.path, LAYOUTS.get(config.format, "auto"), None)
    classes = _classes(config) if config.names else Classes([], [])
    return SampleRecords(layout, classes, box_format=config.box_format)


READERS: dict[str, Callable[[Annotated], AnnotationReader]] = {
    **dict.fromkeys(COCO_FORMATS, _coco),
    "coco_panoptic": _panoptic,
    "voc": _voc,
    "voc_maps": lambda config: voc_maps(_root(config), config.split),
    "yolo": _yolo,
    "ade20k": _ade20k,
    "coco_stuff": _coco_stuff,
    "cityscapes": lambda config: cityscapes(_root(config), config.split),
    "label_maps": _label_maps,
    "cvat": _cvat,
    "darknet": _darknet,
    "webdataset": _samples,
    "hugging_face": _samples,
}
