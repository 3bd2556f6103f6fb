"""Every image and annotation of a file is used or counted with its reason: their sums are the numbers in the file."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from annotated_world import jpeg, read, write
from ledger_totals import read_totals
from vfm.base import UserError
from vfm.data.ledger.ledger import ANNOTATED_LEDGER

Entry = dict[str, Any]
IMAGE_DAMAGE: list[Entry] = [
    {"width": -1}, {"height": "10"}, {"width": True}, {"width": [20]}, {"width": 1e30}, {"id": None}, {"id": 2**70},
    {"file_name": ""}, {"file_name": "missing.jpg"}, {"file_name": 7}, {"neg_category_ids": [[]]},
    {"neg_category_ids": [2**70]}, {"not_exhaustive_category_ids": {"a": 1}},
]  # fmt: skip
ANNOTATION_DAMAGE: list[Entry] = [
    {"bbox": [90, 90, 4, 4]}, {"bbox": None}, {"bbox": [1, 1, 0, 4]}, {"bbox": ["1", 1, 4, 4]}, {"category_id": 9},
    {"category_id": None}, {"category_id": 2**70}, {"image_id": 99}, {"image_id": [1]}, {"id": 0}, {"id": [1]},
    {"segmentation": [[1, 2, 3]]}, {"segmentation": {"counts": [10**12], "size": [10, 20]}}, {"segmentation": "?"},
    {"area": "x"}, {"iscrowd": [1]}, {"bbox": [float("nan"), 1, 4, 4]}, {"category_id": 2},
]  # fmt: skip


def write_damaged(root: Path, rng: random.Random) -> tuple[int, int]:
    """Write a COCO file of which some entries are damaged, and count its images and annotations."""
    images: list[Entry] = []
    for number in range(8):
        write(root / f"{number}.jpg", jpeg())
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 20, "height": 10})
    annotations: list[Entry] = []
    for number in range(20):
        box = {"id": number, "image_id": number % 8, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
        annotations.append(box)
    for image in rng.sample(images[1:], rng.randrange(4)):
        image.update(rng.choice(IMAGE_DAMAGE))
    for annotation in rng.sample(annotations[1:], rng.randrange(9)):
        annotation.update(rng.choice(ANNOTATION_DAMAGE))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    content["categories"].append({"id": 2, "name": "b"})
    write(root / "instances_x.json", json.dumps(content))
    return len(images), len(annotations)


@pytest.mark.parametrize("part", range(4))
def test_images_and_annotations_of_damaged_files_add_up(tmp_path: Path, part: int) -> None:
    for seed in range(part, 60, 4):
        rng, root = random.Random(seed), tmp_path / f"{seed}"
        num_images, num_annotations = write_damaged(root, rng)
        classes = rng.choice([[], ["a"]])
        data = read(root / "out", root, max_bad_fraction=1.0, classes=classes, keep_empty=rng.random() < 0.5)
        assert data.num_samples + sum(data.bad_samples.values()) == num_images, seed
        totals = read_totals(root / "out/artifact", ANNOTATED_LEDGER)
        assert totals["images"].total() == num_images
        assert totals["images"]["used"] == data.num_samples
        assert totals["annotations"].total() == num_annotations
        assert totals["annotations"]["used"] == data.num_objects, seed
        left_out = totals["annotations"] - Counter(used=data.num_objects, class_left_out=20 if classes else 0)
        assert left_out == data.bad_annotations, seed


def test_a_file_without_any_id_is_refused(tmp_path: Path) -> None:
    write_damaged(tmp_path, random.Random(0))
    file = tmp_path / "instances_x.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        del image["id"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected images with `id` and `file_name`"):
        read(tmp_path / "out", tmp_path)
