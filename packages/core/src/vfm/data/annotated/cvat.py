"""Read the boxes and polygons of all images from CVAT's XML file "CVAT for images 1.1".

Source: the format's documentation, docs.cvat.ai. Points, lines, ellipses and tags are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from xml.etree import ElementTree

from vfm.base import UserError, positions
from vfm.data.annotated.records import AnnotatedImage, Annotation, BadAnnotation, Classes, Label, ListedImages
from vfm.data.samples.sample import BadSample
from vfm.storage import files

SHAPES = ("box", "polygon", "mask")


@dataclass
class CvatXml(ListedImages):
    """Reader of an XML file of CVAT and the folder of its images."""

    path: str = ""
    image_root: str = ""
    names: Sequence[str] = ()
    format: str = "cvat"

    def __post_init__(self) -> None:
        """Parse the file.

        Raises:
            UserError: If it is not readable as XML.
        """
        try:
            tree = ElementTree.fromstring(files.read_bytes(self.path))
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise UserError(f"{self.path}: not readable as XML: {error}") from None
        self.elements = tree.findall("image")
        self.listed = list(map(self._image, self.elements, range(len(self.elements))))
        declared = [name.text.strip() for name in tree.iterfind("meta//labels/label/name") if name.text]
        used = set()
        tags = set()
        for shape in chain.from_iterable(self.elements):
            if shape.tag in SHAPES:
                used.add(shape.get("label", ""))
                tags.add(shape.tag)
        self.classes = Classes.numbered(self.names or list(dict.fromkeys([*declared, *sorted(used)])))
        self.labels: list[Label] = ["boxes"]
        if "polygon" in tags:
            self.labels.append("masks")

    def annotations(self, sizes: Sequence[tuple[int, int]]) -> Iterator[Annotation | BadAnnotation]:
        """Yield the objects, image by image."""
        ids = positions(self.classes.names)
        for number, element in enumerate(self.elements):
            for row, shape in enumerate(element):
                if shape.tag in SHAPES:
                    yield _object(shape, ids, number, f"{self.path}: {element.get('name')}: {shape.tag} {row}")

    def _image(self, element: ElementTree.Element, number: int) -> AnnotatedImage:
        name = element.get("name", "")
        path = files.join_inside(self.image_root, name) if name else None
        if path is None:
            return AnnotatedImage(name, name, number, problem=BadSample("unsafe_path", f"{self.path}: {name!r}"))
        try:
            size = int(element.get("width", "")), int(element.get("height", ""))
        except ValueError:
            return AnnotatedImage(name, path, number)
        return AnnotatedImage(name, path, number, size)


def _object(
    shape: ElementTree.Element, ids: dict[str, int], image_index: int, where: str
) -> Annotation | BadAnnotation:
    label = shape.get("label", "")
    if label not in ids:
        return BadAnnotation("unknown_class", f"{where} ({label!r})")
    if shape.tag == "mask":
        return BadAnnotation("bad_mask", f"{where} (CVAT's masks are read from its COCO export)")
    if shape.tag == "box":
        try:
            left = float(shape.get("xtl", ""))
            top = float(shape.get("ytl", ""))
            right = float(shape.get("xbr", ""))
            bottom = float(shape.get("ybr", ""))
        except ValueError:
            return BadAnnotation("bad_box", where)
        return Annotation(image_index, ids[label], where, (left, top, right, bottom))
    try:
        polygon = list(map(float, shape.get("points", "").replace(";", ",").split(",")))
    except ValueError:
        return BadAnnotation("bad_polygon", where)
    return Annotation(image_index, ids[label], where, segmentation=[polygon])
