"""PASCAL VOC: one xml file per picture.

Source: Everingham et al. 2010, The PASCAL visual object classes challenge; corners count from 1 and belong to the box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from vfm.base import UserError
from vfm.data.annotated.records import (
    AnnotatedImage,
    Annotation,
    BadAnnotation,
    Classes,
    Label,
    ListedImages,
)
from vfm.storage import files

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


@dataclass
class VocFolder(ListedImages):
    """Reader of a folder with `JPEGImages`, `Annotations` and `ImageSets/Main/SPLIT.txt`."""

    root: str = ""
    split: str = "train"
    names: Sequence[str] = ()
    format: str = "voc"

    def __post_init__(self) -> None:
        self.labels: list[Label] = ["boxes"]
        stems = split_stems(self.root, "Main", self.split)
        self.listed = [
            AnnotatedImage(stem, f"{self.root}/JPEGImages/{stem}.jpg", number) for number, stem in enumerate(stems)
        ]
        self.classes = Classes.numbered(self.names or self._found_names())

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects, picture by picture; difficult ones are ignored."""
        ids = {name: number for number, name in enumerate(self.classes.names)}
        for number, picture in enumerate(self.listed):
            path = self._xml(picture)
            if (tree := _tree(path)) is None:
                yield BadAnnotation("broken_file", path)
            else:
                yield from _objects(tree, ids, number, path)

    def _found_names(self) -> list[str]:
        found: set[str] = set()
        for picture in self.listed:
            tree = _tree(self._xml(picture))
            objects = () if tree is None else tree.iter("object")
            found |= {name.text.strip() for one in objects if (name := one.find("name")) is not None and name.text}
        return VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)

    def _xml(self, picture: AnnotatedImage) -> str:
        return f"{self.root}/Annotations/{picture.key}.xml"


def split_stems(root: str, task: str, split: str) -> list[str]:
    """Return the names of a split's pictures; all pictures if there are no lists.

    Raises:
        UserError: there are lists, but not of this split.
    """
    lists = f"{root}/ImageSets/{task}"
    if not files.is_directory(lists):
        return [name.rpartition(".")[0] for name in files.walk(f"{root}/JPEGImages") if name.endswith(".jpg")]
    if not files.exists(f"{lists}/{split}.txt"):
        known = sorted(name.removesuffix(".txt") for name in files.names_in(lists) if "_" not in name)
        raise UserError(f"{root}: no split {split!r}; choose from {', '.join(known)}")
    return files.read_text(f"{lists}/{split}.txt").split()


def _tree(path: str) -> ElementTree.Element | None:
    """Return the content of an xml file; None if it is missing or damaged, or has an encoding that is not known."""
    try:
        return ElementTree.fromstring(files.read_bytes(path))
    except (OSError, ElementTree.ParseError, LookupError, ValueError):
        return None


def _objects(
    tree: ElementTree.Element, ids: dict[str, int], picture: int, path: str
) -> Iterator[Annotation | BadAnnotation]:
    for number, one in enumerate(tree.iter("object")):
        where = f"{path}: object {number}"
        name = (one.findtext("name") or "").strip()
        if name not in ids:
            yield BadAnnotation("unknown_class", f"{where} ({name!r})")
            continue
        try:
            left, top, right, bottom = (
                float(one.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            yield BadAnnotation("bad_box", where)
            continue
        difficult = one.findtext("difficult", "0").strip() == "1"
        yield Annotation(picture, ids[name], where, (left - 1, top - 1, right, bottom), ignored=difficult)
