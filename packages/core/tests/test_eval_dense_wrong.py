"""Files of predictions that cannot be used, and models whose outputs are not finite: one line each."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from annotated_world import read, write
from dense_toy import BrightParts, checkpoint
from test_eval_dense import evaluate
from vfm.artifacts import AnnotatedImages, DenseCheckpoint
from vfm.config import UserError
from vfm.data.annotated import AnnotatedSource
from vfm.eval import DensePredictor, Instances
from vfm.eval.dense_panels import SIDE, join
from vfm.eval.detections import read_results
from vfm.eval.object_drawing import SHOWN_SIDE, draw_objects
from vfm.eval.panoptic import _by_file
from vfm.stages.evaluation import Detection, Segmentation

GOOD: dict[str, Any] = {"image_id": 1, "category_id": 10, "bbox": [3, 2, 6, 3], "score": 0.9}
SEGMENT = {"id": 1, "category_id": 10}
RECORD: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 12} for n in (1, 2)],
    "categories": [{"id": 10, "name": "bright", "isthing": 1}, {"id": 20, "name": "dark", "isthing": 0}],
    "annotations": [{"image_id": n, "file_name": f"{n}.png", "segments_info": [SEGMENT]} for n in (1, 2)],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    """Index two grey pictures of 20 x 12 pixels, each of one panoptic segment."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "set/train").mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (20, 12), (200, 200, 200)).save(folder / f"set/train/{number}.png")
        ids = folder / f"set/annotations/panoptic_train/{number}.png"
        ids.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), (1, 0, 0)).save(ids)
    write(folder / "set/annotations/panoptic_train.json", json.dumps(RECORD))
    return read(folder / "data", folder / "set")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"image_id": [1]}, r"no image \[1\]"),
        ({"category_id": {}}, r"no class \{\}"),
        ({"score": 10**400}, "finite `score`"),
        ({"score": math.nan}, "finite `score`"),
        ({"maskness": "x"}, "finite `maskness`, got 'x'"),
        ({"maskness": math.nan}, "finite `maskness`, got nan"),
        ({"bbox": 5}, "four numbers, .* got 5"),
        ({"bbox": ["a", 1, 2, 3]}, "four numbers"),
        ({"bbox": {"x": 1, "y": 1, "w": 2, "h": 3}}, "four numbers"),
        ({"bbox": [3, 2, -6, 3]}, "not negative"),
        ({"bbox": [1e300] * 4}, "four numbers"),
        ({"bbox": [math.nan, 1, 2, 3]}, "four numbers"),
    ],
)
def test_a_wrong_result_is_one_line(data: AnnotatedImages, tmp_path: Path, change: dict[str, Any], line: str) -> None:
    file = write(tmp_path / "results.json", json.dumps([GOOD, {**GOOD, **change}]))
    with pytest.raises(UserError, match=f"results.json: result 1: .*{line}"):
        read_results(file, AnnotatedSource(data))


def _each(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    for one in record["annotations"]:
        change(one)
    return record


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"annotations": []}, "expected `annotations`"),
        ([], "expected `annotations`"),
        ({"annotations": [None]}, "expected objects in `annotations`, got None"),
        (_each(lambda one: one.pop("file_name")), "expected `annotations` with a `file_name`"),
        (_each(lambda one: one.pop("segments_info")), "'segments_info' is missing"),
        (_each(lambda one: one.update(segments_info="x")), "not readable as COCO's panoptic json"),
        (_each(lambda one: one.update(segments_info=[{**SEGMENT, "id": "x"}])), "not readable as COCO's panoptic json"),
        (_each(lambda one: one.update(segments_info=[{"id": 1}])), "'category_id' is missing"),
        (_each(lambda one: one.update(segments_info=[SEGMENT, SEGMENT])), "two segments of image 1 have one id"),
        (_each(lambda one: one.update(image_id=[1])), "not readable as COCO's panoptic json"),
    ],
)
def test_a_wrong_panoptic_file_is_one_line(data: AnnotatedImages, tmp_path: Path, record: Any, line: str) -> None:
    Image.new("RGB", (20, 12), (1, 0, 0)).save(tmp_path / "1.png")
    file = write(tmp_path / "found.json", json.dumps(record))
    with pytest.raises(UserError, match=f"found.json: .*{line}"):
        _by_file(str(file), AnnotatedSource(data))(0, None)


@dataclass
class Overflowing(BrightParts):
    """Scores that are not finite, as of weights that overflow."""

    def detect(self, images: Sequence[Image.Image]) -> list[Instances]:
        return [Instances(np.zeros(1, dtype=np.int64), np.full(1, np.nan), np.ones((1, 4))) for _ in images]

    def crop_logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(crops), 2, 2, 2), np.nan, dtype=np.float32)


def load(checkpoint: DenseCheckpoint, device: torch.device) -> DensePredictor:
    return Overflowing(checkpoint.image_size, checkpoint.tasks)


@pytest.mark.parametrize("stage", [Detection, Segmentation])
def test_scores_that_are_not_finite_are_refused(data: AnnotatedImages, tmp_path: Path, stage: Any) -> None:
    model = checkpoint(tmp_path / "model", data, predictor=f"{__name__}:load")
    kind = stage.model_fields["kind"].default
    with pytest.raises(UserError, match="model: expected finite outputs, got NaN or infinity for '1'"):
        evaluate(stage(kind=kind, name="e", models=["model"], data="data"), tmp_path, model=model, data=data)


def test_the_rule_of_lvis_needs_the_classes_that_are_absent(data: AnnotatedImages, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", data)
    stage = Detection(kind="eval.detection", name="e", models=["model"], data="data", rule="lvis")
    with pytest.raises(UserError, match="rule lvis: expected federated labels"):
        evaluate(stage, tmp_path, model=model, data=data)


def test_small_pictures_are_drawn_enlarged(data: AnnotatedImages) -> None:
    source, picture = AnnotatedSource(data), Image.new("RGB", (20, 12))
    boxes = np.array([[2.0, 2.0, 10.0, 10.0], [-5.0, -5.0, -1.0, -1.0]])
    drawn = draw_objects(picture, np.array([0, 1]), boxes, [None, None], source.dataset.class_names)
    assert drawn.size == (SHOWN_SIDE, 12 * SHOWN_SIDE // 20)
    assert np.asarray(drawn)[2 * 16, 2 * 16 : 10 * 16].any(axis=-1).all()  # the top of the first box
    assert join([Image.new("RGB", (50, 100))], SIDE).size == (100, 200)
    assert join([Image.new("RGB", (500, 1000))], SIDE).size == (SIDE // 2, SIDE)
