"""The stages of dense evaluation on models and on files of predictions, from the labels to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotated_world import bright_parts, read, write, write_map
from cli_world import run_here
from dense_toy import checkpoint
from vfm.base import UserError
from vfm.eval.dense.stages import Detection, Panoptic, Segmentation
from vfm.interfaces import AnnotatedImages, Artifact, Context, Preflight, Report, load_panels

NAMES = ["bright", "dark"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    bright_parts(folder)
    return folder


@pytest.fixture(scope="module")
def data(world: Path) -> AnnotatedImages:
    return read(world / "data", world / "set")


def evaluate(stage: Any, folder: Path, **inputs: Artifact) -> Report:
    directory = folder / "report"
    directory.mkdir(parents=True)
    stage.run(Context(stage.name, directory, folder / "work", {name: one.path for name, one in inputs.items()}))
    report = Artifact.load(directory)
    assert isinstance(report, Report)
    return report


def metrics(report: Report, model: str) -> dict[str, float]:
    return {one.name: one.value for one in report.metrics if one.model == model}


def test_a_models_detections_and_a_file_of_them_have_one_score(data: AnnotatedImages, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", data)
    stage = Detection(kind="eval.detection", name="detect", models=["model"], data="data")
    first = evaluate(stage, tmp_path / "a", model=model, data=data)
    found = metrics(first, "model")
    assert (found["box_ap"], found["mask_ap"]) == pytest.approx((1.0, 1.0))
    file = first.path / "predictions/model.json"
    results = json.loads(file.read_text())
    assert len(results) == 6
    worse = write(tmp_path / "worse.json", json.dumps(results[:3]))
    files = {"all": str(file), "half": str(worse)}
    stage = Detection(kind="eval.detection", name="detect", predictions=files, data="data", maskness=True)
    second = evaluate(stage, tmp_path / "b", data=data)
    assert metrics(second, "all") == pytest.approx(found)
    assert metrics(second, "half")["box_ap"] < 0.7
    (gap, *_) = second.comparisons
    assert (gap.metric, gap.test) == ("box_ap", "paired resamples")
    assert gap.low <= gap.difference <= gap.high
    assert gap.difference < -0.3
    record = json.loads((second.path / "results/data_half_detection.json").read_text())
    assert (record["rule"], record["max_dets"], record["num_images"]) == ("coco", 100, 6)
    titles = {panel.title for panel in load_panels(second.path)}
    assert {"Rule and recall", "Classes by box AP", "Where errors come from", "Worst images"} <= titles
    assert "Confusion matrix" in titles


def test_masks_need_masks(data: AnnotatedImages, tmp_path: Path) -> None:
    one = {"image_id": 1, "category_id": 10, "bbox": [1, 1, 3, 3], "score": 1}
    file = write(tmp_path / "boxes.json", json.dumps([one]))
    stage = Detection(kind="eval.detection", name="d", predictions={"a": str(file)}, data="data", shapes=["masks"])
    with pytest.raises(UserError, match="a: shapes has masks, its predictions have boxes only"):
        evaluate(stage, tmp_path, data=data)


@pytest.mark.parametrize("more", [{}, {"stride": 0.5, "scales": [0.75, 1.0, 1.5], "flip": True}])
def test_semantic_maps_of_a_model_and_of_files(
    world: Path, data: AnnotatedImages, tmp_path: Path, more: dict[str, Any]
) -> None:
    model = checkpoint(tmp_path / "model", data)
    settings = {"models": ["model"], "predictions": {"truth": str(world / "maps")}, "data": "data"}
    stage = Segmentation(kind="eval.segmentation", name="s", **settings, **more)
    report = evaluate(stage, tmp_path, model=model, data=data)
    assert metrics(report, "truth")["miou"] == 1.0
    assert 0.7 < metrics(report, "model")["miou"] <= 1.0
    assert (report.path / "predictions/images.parquet").exists()


def test_a_map_of_another_size_is_one_line(data: AnnotatedImages, tmp_path: Path) -> None:
    write_map(tmp_path / "maps/1.png", np.zeros((3, 4)))
    stage = Segmentation(kind="eval.segmentation", name="s", predictions={"a": str(tmp_path / "maps")}, data="data")
    with pytest.raises(UserError, match=r"1\.png: expected 20 x 12 pixels, got 4 x 3"):
        evaluate(stage, tmp_path, data=data)


def test_panoptic_maps_of_a_model_and_of_a_file(world: Path, data: AnnotatedImages, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", data)
    truth = str(world / "set/annotations/panoptic_train.json")
    stage = Panoptic(kind="eval.panoptic", name="p", models=["model"], predictions={"truth": truth}, data="data")
    report = evaluate(stage, tmp_path, model=model, data=data)
    for name in ("model", "truth"):
        found = metrics(report, name)
        assert found == pytest.approx(dict.fromkeys(("pq", "sq", "rq", "pq_things", "pq_stuff"), 1.0))


def test_what_cannot_be_evaluated_is_found_before_the_run(world: Path, data: AnnotatedImages, tmp_path: Path) -> None:
    maps = read(tmp_path / "maps", world / "set/train", annotations=str(world / "maps"), names=NAMES)
    boxes = checkpoint(tmp_path / "boxes", data, tasks=["boxes"])
    other = checkpoint(tmp_path / "other", data, class_names=["bright", "grey"])
    paths = {"maps": maps.path, "data": data.path, "boxes": boxes.path, "other": other.path}
    ctx = Preflight({}, paths)

    def check(stage: Any, line: str) -> None:
        with pytest.raises(UserError, match=line):
            stage.preflight(ctx)

    check(
        Detection(kind="eval.detection", name="d", models=["boxes"], data="maps"),
        "maps: eval.detection needs boxes or masks, the dataset has semantic",
    )
    check(
        Panoptic(kind="eval.panoptic", name="p", models=["boxes"], data="data"),
        "boxes: eval.panoptic needs panoptic, the model predicts boxes",
    )
    check(
        Segmentation(kind="eval.segmentation", name="s", models=["other"], data="data"),
        "expected the same classes in other and data, got 'grey' where 'dark' is",
    )
    check(
        Detection(kind="eval.detection", name="d", models=["a/x", "b/x"], data="data"),
        "models: 'x' is named more than once",
    )


def test_a_recipe_needs_something_to_evaluate(data: AnnotatedImages, tmp_path: Path) -> None:
    stage = {"kind": "eval.detection", "name": "detect", "data": str(data.path)}
    recipe = write(tmp_path / "recipe.yaml", json.dumps({"stages": [stage]}))
    done = run_here("plan", str(recipe), "--store", str(tmp_path / "store"))
    assert done.code == 2
    assert "detect.models: is required (the models to evaluate)" in done.err


def test_a_recipe_evaluates_files_of_predictions_alone(data: AnnotatedImages, tmp_path: Path) -> None:
    one = {"image_id": 1, "category_id": 10, "bbox": [3, 2, 6, 3], "score": 1}
    file = write(tmp_path / "found.json", json.dumps([one]))
    stage = {"kind": "eval.detection", "name": "detect", "data": str(data.path), "predictions": {"mine": str(file)}}
    recipe = write(tmp_path / "recipe.yaml", json.dumps({"stages": [stage]}))
    done = run_here("run", str(recipe), "--store", str(tmp_path / "store"), "--quiet")
    assert done.code == 0, done.err
    assert "mine" in (tmp_path / "store/runs/recipe/report.html").read_text()
