"""Files of predictions that cannot be used, and models whose outputs are not finite: one line each."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from annotated_world import coco, read, write, write_map
from dense_toy import BrightParts, Painter, checkpoint
from test_eval_dense import evaluate
from vfm.base import UserError
from vfm.data.annotated import AnnotatedSource
from vfm.eval import DensePredictor, Instances
from vfm.eval.dense.dense_panels import SIDE, join
from vfm.eval.dense.object_drawing import SHOWN_SIDE, draw_objects
from vfm.eval.dense.stages import Detection, Panoptic, Segmentation
from vfm.eval.detection.detections import read_results
from vfm.eval.segmentation.panoptic import _by_file
from vfm.interfaces import AnnotatedImages, DenseCheckpoint

GOOD: dict[str, Any] = {"image_id": 1, "category_id": 10, "bbox": [3, 2, 6, 3], "score": 0.9}
SEGMENT = {"id": 1, "category_id": 10}
RECORD: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 12} for n in (1, 2)],
    "categories": [{"id": 10, "name": "bright", "isthing": 1}, {"id": 20, "name": "dark", "isthing": 0}],
    "annotations": [{"image_id": n, "file_name": f"{n}.png", "segments_info": [SEGMENT]} for n in (1, 2)],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    return grey_pictures(tmp_path_factory.mktemp("world"), RECORD)


def grey_pictures(folder: Path, record: dict[str, Any]) -> AnnotatedImages:
    """Index two grey pictures of 20 x 12 pixels, each of one panoptic segment."""
    (folder / "set/train").mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (20, 12), (200, 200, 200)).save(folder / f"set/train/{number}.png")
        ids = folder / f"set/annotations/panoptic_train/{number}.png"
        ids.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), (1, 0, 0)).save(ids)
    write(folder / "set/annotations/panoptic_train.json", json.dumps(record))
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


class Overflow(Painter):
    kind: Literal["toy.overflow"] = "toy.overflow"  # type: ignore[assignment]
    predictor: ClassVar[str] = f"{__name__}:load"


def load(checkpoint: DenseCheckpoint, device: torch.device) -> DensePredictor:
    return Overflowing(checkpoint.image_size, checkpoint.tasks)


@pytest.mark.parametrize("stage", [Detection, Segmentation])
def test_scores_that_are_not_finite_are_refused(data: AnnotatedImages, tmp_path: Path, stage: Any) -> None:
    model = checkpoint(tmp_path / "model", data, predictor=Overflow.predictor)
    kind = stage.model_fields["kind"].default
    with pytest.raises(UserError, match="model: expected finite outputs, got NaN or infinity for '1'"):
        evaluate(stage(kind=kind, name="e", models=["model"], data="data"), tmp_path, model=model, data=data)


def test_the_rule_of_lvis_needs_the_classes_that_are_absent(data: AnnotatedImages, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", data)
    stage = Detection(kind="eval.detection", name="e", models=["model"], data="data", rule="lvis")
    with pytest.raises(UserError, match="rule lvis: expected federated labels"):
        evaluate(stage, tmp_path, model=model, data=data)


def test_data_without_anything_to_compare_with_are_refused_in_a_line(tmp_path: Path) -> None:
    empty = read(tmp_path / "empty", coco(tmp_path / "coco", []))
    found = str(write(tmp_path / "none.json", "[]"))
    detect = Detection(kind="eval.detection", name="e", predictions={"a": found}, data="empty")
    with pytest.raises(UserError, match="empty: expected annotated objects, got none"):
        evaluate(detect, tmp_path / "a", empty=empty)
    crowds = _each(lambda one: one.update(segments_info=[{**SEGMENT, "iscrowd": 1}]))
    crowd, truth = grey_pictures(tmp_path, crowds), str(tmp_path / "set/annotations/panoptic_train.json")
    panoptic = Panoptic(kind="eval.panoptic", name="e", predictions={"a": truth}, data="crowd")
    with pytest.raises(UserError, match="crowd: expected segments, got none that counts"):
        evaluate(panoptic, tmp_path / "b", crowd=crowd)
    for number in (1, 2):
        Image.new("RGB", (4, 3)).save(write(tmp_path / f"images/{number}.png", ""))
        write_map(tmp_path / f"maps/{number}.png", np.full((3, 4), 255))
    maps = {"annotations": str(tmp_path / "maps"), "names": ["cat", "dog"]}
    blank = read(tmp_path / "blank", tmp_path / "images", **maps)
    for name in "ab":
        for number in (1, 2):
            write_map(tmp_path / f"{name}/{number}.png", np.zeros((3, 4)))
    predictions = {name: str(tmp_path / name) for name in "ab"}
    stage = Segmentation(kind="eval.segmentation", name="e", predictions=predictions, data="blank")
    with pytest.raises(UserError, match="blank: expected labelled pixels, got none"):
        evaluate(stage, tmp_path / "c", blank=blank)


def test_models_are_compared_where_only_one_predicts_regions_that_no_image_has(
    data: AnnotatedImages, tmp_path: Path
) -> None:
    predictions = {}
    for name, category in (("thing", 10), ("region", 20)):
        for number in (1, 2):
            Image.new("RGB", (20, 12), (1, 0, 0)).save(write(tmp_path / f"{name}/{number}.png", ""))
        record = _each(lambda one, found=category: one.update(segments_info=[{"id": 1, "category_id": found}]))
        predictions[name] = str(write(tmp_path / f"{name}.json", json.dumps(record)))
    stage = Panoptic(kind="eval.panoptic", name="p", predictions=predictions, data="data")
    report = evaluate(stage, tmp_path, data=data)
    values = {(one.model, one.name): one.value for one in report.metrics}
    assert values["thing", "pq"] == 1.0
    assert values["region", "pq"] == 0.0
    assert {name for _, name in values} == {"pq", "sq", "rq", "pq_things"}


def test_small_pictures_are_drawn_enlarged(data: AnnotatedImages) -> None:
    source, picture = AnnotatedSource(data), Image.new("RGB", (20, 12))
    boxes = np.array([[2.0, 2.0, 10.0, 10.0], [-5.0, -5.0, -1.0, -1.0]])
    drawn = draw_objects(picture, np.array([0, 1]), boxes, [None, None], source.dataset.class_names)
    assert drawn.size == (SHOWN_SIDE, 12 * SHOWN_SIDE // 20)
    assert np.asarray(drawn)[2 * 16, 2 * 16 : 10 * 16].any(axis=-1).all()  # the top of the first box
    assert join([Image.new("RGB", (50, 100))], SIDE).size == (100, 200)
    assert join([Image.new("RGB", (500, 1000))], SIDE).size == (SIDE // 2, SIDE)
