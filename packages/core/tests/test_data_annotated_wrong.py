"""Entries of a wrong type in annotation files: skipped and counted where an object is wrong, else one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from annotated_world import bright_parts, coco, jpeg, read, write
from cli_world import run_here
from data_samples import bomb
from vfm.base import UserError
from vfm.data.annotated.coco import stream
from vfm.data.annotated.object_records import class_names_in
from vfm.data.annotated.source import AnnotatedSource

GOOD: dict[str, Any] = {"bbox": [1, 1, 5, 5]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": 5}, "bad_box"),
        ({"segmentation": {"size": 5, "counts": "a"}}, "bad_mask"),
        ({"segmentation": {"size": [10, 20], "counts": "\ud800"}}, "bad_mask"),
        ({"segmentation": [[0, 0, 1e6, 0, 1e6, 1e6]]}, "bad_polygon"),
        ({"image_id": [1]}, "unknown_image"),
        ({"image_id": "1"}, "unknown_image"),
    ],
)
def test_a_wrong_object_is_counted(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    made = read(tmp_path / "data", coco(tmp_path / "set", [GOOD, {**GOOD, **change}]))
    assert made.bad_annotations == {reason: 1}


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("annotations", None, "expected objects in `annotations`, got None"),
        ("annotations", "x", "expected objects in `annotations`, got x"),
        ("images", None, "expected objects in `images`, got None"),
    ],
)
def test_a_wrong_entry_of_a_file_is_one_line(tmp_path: Path, name: str, change: Any, line: str) -> None:
    folder = coco(tmp_path / "set", [GOOD])
    file = folder / "annotations/instances_train.json"
    record = json.loads(file.read_text())
    record[name][0] = {**record[name][0], **change} if isinstance(change, dict) else change
    write(file, json.dumps(record))
    with pytest.raises(UserError, match=rf"instances_train\.json: {line}"):
        read(tmp_path / "data", folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": "64"}, "wrong_size"),
        ({"width": -1}, "wrong_size"),
        ({"height": 1e30}, "wrong_size"),
        ({"neg_category_ids": 5}, "unknown_label"),
        ({"neg_category_ids": [[]]}, "unknown_label"),
        ({"not_exhaustive_category_ids": ["1"]}, "unknown_label"),
    ],
)
def test_a_wrong_image_is_counted(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = coco(tmp_path / "set", [GOOD])
    file = folder / "annotations/instances_train.json"
    record = json.loads(file.read_text())
    first = record["images"][0]
    (folder / "train/copy.jpg").write_bytes((folder / "train" / first["file_name"]).read_bytes())
    record["images"].append({**first, "id": 777, "file_name": "copy.jpg", **change})
    record["annotations"].append(
        {**record["annotations"][0], "id": 778, "image_id": 777, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    )
    write(file, json.dumps(record))
    made = read(tmp_path / "data", folder, max_bad_fraction=0.6)
    assert made.bad_samples == {reason: 1}
    assert made.num_samples == len(record["images"]) - 1


def test_images_without_any_object_make_a_dataset(tmp_path: Path) -> None:
    made = read(tmp_path / "data", coco(tmp_path / "set", []), max_bad_fraction=0)
    assert (made.num_samples, made.frequency) == (2, [])


@pytest.mark.parametrize("label", ["1e400", "0.5", "inf"])
def test_a_label_of_yolo_is_a_whole_number(tmp_path: Path, label: str) -> None:
    for number in range(2):
        write(tmp_path / f"set/images/train/{number}.jpg", jpeg())
    write(tmp_path / "set/labels/train/0.txt", f"{label} .5 .5 .1 .1\n0 .5 .5 .1 .1\n")
    write(tmp_path / "set/data.yaml", "names: [a, b]\n")
    assert read(tmp_path / "data", tmp_path / "set").bad_annotations == {"unknown_class": 1}


def test_yaml_of_something_else_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "set/images/train/a.jpg", jpeg())
    write(tmp_path / "set/labels/train/a.txt", "0 .5 .5 .1 .1\n")
    write(tmp_path / "set/data.yaml", "names: [a]\n")
    write(tmp_path / "set/compose.yaml", "a: 1\n---\nb: 2\n")
    write(tmp_path / "list.yaml", "[1, 2]\n")
    assert read(tmp_path / "data", tmp_path / "set").class_names == ["a"]
    write(tmp_path / "set/data.yaml", "names: {0: a, 1000012345: b}\n")
    with pytest.raises(UserError, match=r"data\.yaml: expected numbers of classes below 100,000, got 1000012345"):
        read(tmp_path / "large", tmp_path / "set")
    write(tmp_path / "set/data.yaml", "names: [a\n")
    with pytest.raises(UserError, match=r"data\.yaml: not readable as YAML"):
        read(tmp_path / "broken", tmp_path / "set")


def test_a_packed_json_with_damage_inside_is_one_line(tmp_path: Path) -> None:
    folder = coco(tmp_path / "set", [GOOD] * 200)
    file = folder / "annotations/instances_train.json"
    data = bytearray(gzip.compress(file.read_bytes()))
    data[40:60] = b"\xff" * 20
    packed = write(tmp_path / "packed.json.gz", bytes(data))
    with pytest.raises(UserError, match=r"packed\.json\.gz: not readable as JSON"):
        read(tmp_path / "data", folder, annotations=str(packed))


def test_numbers_of_classes_have_a_limit() -> None:
    records = [{"objects": [{"bbox": [1, 1, 5, 5], "category": 1_000_012_345}]}]
    with pytest.raises(
        UserError, match=r"a\.tar: expected numbers of classes below 100,000, got 1000012345; set names"
    ):
        class_names_in(records, "a.tar")


def test_a_class_that_is_no_name_and_no_number_gives_no_class() -> None:
    records = [{"objects": {"bbox": [[1, 1, 5, 5]] * 2, "category": [["x"], "cat"]}}]
    assert class_names_in(records, "a.tar") == ["cat"]


SEGMENT, DARK = {"id": 1, "category_id": 10}, {"id": 2, "category_id": 20}


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"segments_info": None}, {"bad_mask": 1}),
        ({"segments_info": ["x", SEGMENT]}, {"bad_mask": 1, "unknown_class": 1}),
        ({"segments_info": [{**SEGMENT, "id": "1"}, DARK]}, {"bad_mask": 1, "unknown_class": 1}),
        ({"segments_info": [{"id": 1}, DARK]}, {"unknown_class": 1}),
        ({"image_id": [1]}, {"unknown_image": 1}),
    ],
)
def test_a_wrong_segment_is_counted(tmp_path: Path, change: dict[str, Any], reasons: dict[str, int]) -> None:
    bright_parts(tmp_path)
    file = tmp_path / "set/annotations/panoptic_train.json"
    record = json.loads(file.read_text())
    record["annotations"][1].update(change)
    write(file, json.dumps(record))
    assert read(tmp_path / "data", tmp_path / "set").bad_annotations == reasons


def test_a_map_with_a_huge_size_in_its_header_is_bad(tmp_path: Path) -> None:
    bright_parts(tmp_path)
    write(tmp_path / "set/annotations/panoptic_train/1.png", bomb())
    assert read(tmp_path / "data", tmp_path / "set").bad_annotations == {"broken_file": 1}
    write(tmp_path / "maps/1.png", bomb())
    maps = {"annotations": str(tmp_path / "maps"), "names": ["bright", "dark"]}
    assert read(tmp_path / "maps-data", tmp_path / "set/train", **maps).bad_samples == {"missing_label": 1}


def test_a_map_of_one_bit_has_two_classes(tmp_path: Path) -> None:
    write(tmp_path / "set/a.jpg", jpeg())
    (tmp_path / "maps").mkdir()
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:5, 3:9] = True
    Image.fromarray(mask).save(tmp_path / "maps/a.png")
    maps = {"annotations": str(tmp_path / "maps"), "names": ["ground", "thing"]}
    source = AnnotatedSource(read(tmp_path / "data", tmp_path / "set", **maps))
    assert (source.semantic(0) == mask).all()


@pytest.mark.parametrize("encoding", ["gbk", "no-encoding"])
def test_xml_in_an_encoding_that_cannot_be_read_is_counted(tmp_path: Path, encoding: str) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for stem in ("a", "b"):
        write(tmp_path / f"voc/JPEGImages/{stem}.jpg", jpeg())
        head = f'<?xml version="1.0" encoding="{encoding}"?>' if stem == "b" else ""
        write(
            tmp_path / f"voc/Annotations/{stem}.xml",
            f"{head}<annotation><object><name>dog</name>{box}</object></annotation>",
        )
    made = read(tmp_path / "data", tmp_path / "voc")
    assert (made.num_objects, made.bad_annotations) == (1, {"broken_file": 1})


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_exif_does_not_have_turns_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "set/images/train/a.jpg", jpeg(20, 10, exif=exif))
    write(tmp_path / "set/labels/train/a.txt", "0 .5 .5 1 1\n")
    write(tmp_path / "set/data.yaml", "names: [a]\n")
    source = AnnotatedSource(read(tmp_path / "data", tmp_path / "set"))
    assert source.image(0).size == source.sizes[0] == (20, 10)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_costs_its_annotation_only(tmp_path: Path, number: str) -> None:
    record = {
        "images": [{"id": 0, "file_name": "0.png", "width": 16, "height": 16}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": n, "image_id": 0, "category_id": 1, "bbox": [1, 1, "N" if n == 1 else 5, 5]} for n in range(3)
        ],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(record).replace('"N"', number))
    entries = list(stream(str(file), "annotations"))
    assert [entry["bbox"] for entry in entries] == [[1, 1, 5, 5], [1, 1, None, 5], [1, 1, 5, 5]]
    file.write_text(file.read_text()[:-9])
    with pytest.raises(UserError, match=r"a\.json: not readable as JSON"):
        list(stream(str(file), "annotations"))


def test_annotations_that_were_left_out_are_shown_and_are_no_bad_samples(tmp_path: Path) -> None:
    folder = coco(tmp_path / "set", [GOOD, {**GOOD, "bbox": [1000, 1000, 5, 5]}])
    recipe = tmp_path / "r.yaml"
    settings = "max_bad_fraction: 0.5"
    recipe.write_text(f"stages:\n  - {{kind: data.annotated, name: x, path: {folder}, {settings}}}\n")
    done = run_here("run", recipe, "--store", tmp_path / "store")
    assert done.code == 0, done.err
    assert "x: annotations left out: 1 (1 box_outside_image); the first is annotation " in done.out + done.err
    (manifest,) = (tmp_path / "store").glob("data.annotated-*/manifest.json")
    assert json.loads(manifest.read_text())["bad_samples"] == {}
