"""PASCAL VOC: one XML file per image.

Source: Everingham et al. 2010, The PASCAL visual object classes challenge. Corners count from 1 and belong to the box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from vfm.base import UserError, positions
from vfm.data.annotated.records import AnnotatedImage, Annotation, BadAnnotation, Classes, Label, ListedImages
from vfm.data.layouts.folder import image_names
from vfm.storage import files

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


@dataclass
class VocFolder(ListedImages):
    """Reader of a folder with `JPEGImages`, `Annotations` and `ImageSets/Main/SPLIT.txt`.

    FiftyOne's export has the images in `data` and the XML files in `labels`.
    """

    root: str = ""
    split: str = "train"
    names: Sequence[str] = ()
    format: str = "voc"

    def __post_init__(self) -> None:
        self.labels: list[Label] = ["boxes"]
        self.xml_folder = f"{self.root}/Annotations"
        paths: dict[str, str] = {}
        if files.is_directory(self.xml_folder):
            for stem in split_stems(self.root, "Main", self.split):
                paths[stem] = f"{self.root}/JPEGImages/{stem}.jpg"
        else:
            self.xml_folder = f"{self.root}/labels"
            for name in image_names(f"{self.root}/data"):
                paths[name.rpartition(".")[0]] = f"{self.root}/data/{name}"
        self.listed = [AnnotatedImage(stem, path, number) for number, (stem, path) in enumerate(paths.items())]
        self.classes = Classes.numbered(self.names or self._names_in_files())

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects, image by image. Difficult objects are marked as ignored."""
        ids = positions(self.classes.names)
        for number, image in enumerate(self.listed):
            path = self._xml(image)
            tree = _tree(path)
            if tree is None:
                yield BadAnnotation("broken_file", path)
            else:
                yield from _objects(tree, ids, number, path)

    def _names_in_files(self) -> list[str]:
        names: set[str] = set()
        for image in self.listed:
            tree = _tree(self._xml(image))
            for element in () if tree is None else tree.iter("object"):
                name = element.findtext("name")
                if name:
                    names.add(name.strip())
        return VOC_CLASSES if names <= set(VOC_CLASSES) else sorted(names)

    def _xml(self, image: AnnotatedImage) -> str:
        return f"{self.xml_folder}/{image.key}.xml"


def split_stems(root: str, task: str, split: str) -> list[str]:
    """List the names of a split's images, or of all images if there are no lists.

    Args:
        root: Folder of the dataset.
        task: Folder of the lists, such as Main or Segmentation.
        split: Name of the split.

    Raises:
        UserError: If there are lists, but none for this split.
    """
    lists = f"{root}/ImageSets/{task}"
    if not files.is_directory(lists):
        return [name.rpartition(".")[0] for name in files.walk(f"{root}/JPEGImages") if name.endswith(".jpg")]
    if not files.exists(f"{lists}/{split}.txt"):
        known = sorted(name.removesuffix(".txt") for name in files.names_in(lists) if "_" not in name)
        raise UserError(f"{root}: no split {split!r}; choose from {', '.join(known)}")
    return files.read_text(f"{lists}/{split}.txt").split()


def _tree(path: str) -> ElementTree.Element | None:
    """Parse an XML file.

    The result is None if the file is missing or damaged, or has an unknown encoding.
    """
    try:
        return ElementTree.fromstring(files.read_bytes(path))
    except (OSError, ElementTree.ParseError, LookupError, ValueError):
        return None


def _objects(
    tree: ElementTree.Element, ids: dict[str, int], image_index: int, path: str
) -> Iterator[Annotation | BadAnnotation]:
    for number, element in enumerate(tree.iter("object")):
        where = f"{path}: object {number}"
        name = (element.findtext("name") or "").strip()
        if name not in ids:
            yield BadAnnotation("unknown_class", f"{where} ({name!r})")
            continue
        try:
            corners = [float(element.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            yield BadAnnotation("bad_box", where)
            continue
        difficult = element.findtext("difficult", "0").strip() == "1"
        left, top, right, bottom = corners  # counted from 1, and the last pixel belongs to the box
        yield Annotation(image_index, ids[name], where, (left - 1, top - 1, right, bottom), ignored=difficult)
