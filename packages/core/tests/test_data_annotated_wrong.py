"""Entries of a wrong type in annotation files: skipped and counted where an object is wrong, else one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from annotated_world import coco, jpeg, read, write
from vfm.config import UserError
from vfm.data.annotated.object_records import class_names_in

GOOD: dict[str, Any] = {"bbox": [1, 1, 5, 5]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": 5}, "bad_box"),
        ({"segmentation": {"size": 5, "counts": "a"}}, "bad_mask"),
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
        ("images", {"width": "x"}, "expected `width` and `height` as numbers"),
        ("images", {"neg_category_ids": 5}, "expected neg_category_ids and .* as lists"),
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


def test_a_class_that_is_no_name_and_no_number_gives_no_class() -> None:
    records = [{"objects": {"bbox": [[1, 1, 5, 5]] * 2, "category": [["x"], "cat"]}}]
    assert class_names_in(records) == ["cat"]
