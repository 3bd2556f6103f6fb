"""Exports of annotation tools in CVAT's XML, Darknet's YOLO and FiftyOne's VOC: the same boxes as in COCO's json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annotated_world import jpeg, read, write
from cli_world import run_here
from vfm.base import UserError
from vfm.data.annotated.source import AnnotatedSource
from vfm.interfaces import AnnotatedImages

WIDTH, HEIGHT = 40, 20
BOXES = {
    "a": [("dog", (2.0, 1.0, 12.0, 11.0)), ("cat", (20.0, 4.0, 36.0, 16.0))],
    "b": [("cat", (0.0, 0.0, 40.0, 20.0))],
    "c": [],
}


def cvat(folder: Path) -> Path:
    images = []
    for number, (stem, objects) in enumerate(BOXES.items()):
        write(folder / "images" / f"{stem}.jpg", jpeg(WIDTH, HEIGHT))
        shapes = [
            f'<box label="{name}" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}"/>' for name, (x0, y0, x1, y1) in objects
        ]
        head = f'<image id="{number}" name="{stem}.jpg" width="{WIDTH}" height="{HEIGHT}">'
        images.append(f"{head}{''.join(shapes)}</image>")
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("dog", "cat"))
    meta = f"<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
    write(folder / "annotations.xml", f'<?xml version="1.0"?>\n<annotations>{meta}{"".join(images)}</annotations>')
    return folder


def darknet(folder: Path) -> Path:
    for stem, objects in BOXES.items():
        write(folder / "obj_train_data" / f"{stem}.jpg", jpeg(WIDTH, HEIGHT))
        lines = []
        for name, (x0, y0, x1, y1) in objects:
            centre = (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT
            lines.append(f"{('dog', 'cat').index(name)} {' '.join(map(str, centre))}")
        write(folder / "obj_train_data" / f"{stem}.txt", "\n".join(lines))
    write(folder / "obj.names", "dog\ncat\n")
    write(folder / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(folder / "train.txt", "\n".join(f"data/obj_train_data/{stem}.jpg" for stem in BOXES))
    return folder


def fiftyone_voc(folder: Path) -> Path:
    for stem, objects in BOXES.items():
        write(folder / "data" / f"{stem}.jpg", jpeg(WIDTH, HEIGHT))
        parts = []
        for name, (x0, y0, x1, y1) in objects:
            corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            parts.append(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>")
        write(folder / "labels" / f"{stem}.xml", f"<annotation>{''.join(parts)}</annotation>")
    return folder


def boxes_by_name(data: AnnotatedImages) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    source = AnnotatedSource(data)
    by_name: dict[str, list[tuple[str, tuple[float, ...]]]] = {}
    for number, key in enumerate(source.keys):
        objects = source.objects(number)
        names = [data.class_names[label] for label in objects.labels.tolist()]
        boxes = [tuple(box) for box in objects.boxes.round(6).tolist()]  # Darknet has fractions
        by_name[Path(key).stem] = list(zip(names, boxes, strict=True))
    return by_name


@pytest.mark.parametrize("write_export", [cvat, darknet, fiftyone_voc])
def test_an_export_has_the_boxes_that_were_drawn(tmp_path: Path, write_export: Callable[[Path], Path]) -> None:
    folder = write_export(tmp_path / "export")
    data = read(tmp_path / "read", folder)
    shown = boxes_by_name(data)
    assert {stem: sorted(objects) for stem, objects in shown.items()} == {
        stem: sorted(objects) for stem, objects in BOXES.items()
    }
    looked = run_here("doctor", folder)
    assert looked.code == 0, looked.err
    assert "images with boxes" in looked.out
    assert f"next: vfm run boxes --set train.path={folder}" in looked.out


def test_polygons_of_cvat_are_masks_and_damaged_shapes_are_counted(tmp_path: Path) -> None:
    folder = cvat(tmp_path / "export")
    text = (folder / "annotations.xml").read_text()
    shapes = [
        '<polygon label="dog" points="2.0,1.0;8.0,1.0;8.0,5.0;2.0,5.0"/>',
        '<polygon label="dog" points="2.0,1.0;x"/>',
        '<box label="dog" xtl="?" ytl="1" xbr="2" ybr="3"/>',
        '<mask label="cat" rle="1, 2" left="0" top="0" width="3" height="1"/>',
        '<points label="dog" points="1,1"/>',
    ]
    end = "</image></annotations>"
    write(folder / "annotations.xml", text.replace(end, "".join([*shapes, end])))
    data = read(tmp_path / "read", folder, annotations=str(folder / "annotations.xml"))
    source = AnnotatedSource(data)
    assert data.labels == ["boxes", "masks"]
    assert source.objects(2).boxes.tolist() == [[2, 1, 8, 5]]
    assert source.masks(2).sum() == 24
    assert data.bad_annotations == {"bad_polygon": 1, "bad_box": 1, "bad_mask": 1}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<annotations><image", "not readable as XML"),
        ('<annotations><image name="../x.jpg"/></annotations>', "unsafe_path"),
    ],
)
def test_a_damaged_file_of_cvat_is_one_line(tmp_path: Path, content: str, expected: str) -> None:
    folder = cvat(tmp_path / "export")
    write(folder / "annotations.xml", content)
    settings: dict[str, Any] = {"max_bad_fraction": 0.0}
    with pytest.raises(UserError, match=expected) as caught:
        read(tmp_path / "read", folder, **settings)
    assert "\n" not in str(caught.value)
