"""Evaluations of models with a dense head during their training: the numbers of the stages, no trace in the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eva_toy import context
from vfm.base import UserError
from vfm.data.synthetic.stages import ShapesScenes
from vfm.eval.dense.stages import Detection, Panoptic, Segmentation
from vfm.models import build_vision, load_state_dict, save_vision
from vfm.plugin import (
    AnnotatedImages,
    DenseCheckpoint,
    Preflight,
    Report,
    Training,
    VisionCheckpoint,
)
from vfm_eva.dense.detect.stages import EvaDetect
from vfm_eva.dense.segment.stages import EvaSegment

CASCADE = {"num_rois": 16, "num_convs": 1, "hidden": 16, "mask_convs": 1}
DETECTOR: dict[str, Any] = {
    "image_size": 32, "channels": 16, "cascade": CASCADE,
    "proposals": {"num_convs": 1, "num_samples": 32, "before_nms": 60, "num_proposals": 20},
}  # fmt: skip
QUERIES = {"type": "queries", "num_queries": 8, "num_blocks": 1, "loss": {"num_points": 64}}
KINDS: dict[str, Any] = {
    "eval.detection": Detection, "eval.segmentation": Segmentation, "eval.panoptic": Panoptic,
}  # fmt: skip
MODELS: list[tuple[type[Training], dict[str, Any], str, str]] = [
    (EvaDetect, {"detector": DETECTOR}, "eval.detection", "mask_ap"),
    (EvaDetect, {"detector": {**DETECTOR, "masks": False}}, "eval.detection", "box_ap"),
    (EvaSegment, {"task": "instance", "head": QUERIES}, "eval.detection", "mask_ap"),
    (EvaSegment, {"task": "panoptic", "head": QUERIES}, "eval.panoptic", "pq"),
    (EvaSegment, {"task": "semantic", "head": {"type": "linear"}}, "eval.segmentation", "miou"),
]


def scenes_of(folder: Path, seed: int, **changes: Any) -> AnnotatedImages:
    world = {"image_size": 32, "shapes": ["circle", "square", "star"]}
    settings = {"name": "scenes", "num_samples": 10, "max_objects": 3, "scale": (0.15, 0.3), "world": world}
    made: Any = ShapesScenes.model_validate({**settings, "seed": seed, **changes}).run(context(folder))
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnnotatedImages | VisionCheckpoint]:
    folder = tmp_path_factory.mktemp("inputs")
    encoder = save_vision(build_vision("eva02_pico_patch8_32", num_classes=0, seed=0), folder / "encoder")
    return {"encoder": encoder, "scenes": scenes_of(folder / "scenes", 1), "val": scenes_of(folder / "val", 2)}


def train(kind: type[Training], folder: Path, inputs: dict[str, Any], **changes: Any) -> DenseCheckpoint:
    settings = {
        "name": "model", "encoder": "encoder", "data": "scenes", "steps": 4, "global_batch_size": 4, "lr": 1e-3,
        "log_every": 1, "runtime": {"device": "cpu"},
    }  # fmt: skip
    made: Any = kind.model_validate({**settings, **changes}).run(context(folder, **inputs))
    return made


@pytest.mark.parametrize(("kind", "settings", "evaluation", "metric"), MODELS)
def test_scores_in_training_are_those_of_the_stage_and_leave_the_weights_alone(
    kind: type[Training], settings: dict[str, Any], evaluation: str, metric: str, inputs: dict[str, Any], tmp_path: Path
) -> None:
    tasks = KINDS[evaluation](name=evaluation.rpartition(".")[2], data="val")
    # keep_best evaluates the initial weights too, before the first step.
    policy = {"tasks": [tasks], "every_steps": 2, "keep_best": f"val/{metric}"}
    made = train(kind, tmp_path / "evaluated", inputs, **settings, evaluation=policy)
    lines = (tmp_path / "evaluated/artifact/metrics.jsonl").read_text().splitlines()
    values = {line["step"]: line[f"val/{metric}"] for line in map(json.loads, lines) if f"val/{metric}" in line}
    assert values.keys() == {0, 2, 4}
    alone = KINDS[evaluation](name="alone", models=["model"], data="val", num_resamples=100)
    report = alone.run(context(tmp_path / "alone", model=made, val=inputs["val"]))
    assert isinstance(report, Report)
    (found,) = [one.value for one in report.metrics if one.name == metric]
    assert found == pytest.approx(max(values.values()))
    every = {"tasks": [tasks], "every_steps": 1}
    one, other = (
        train(kind, tmp_path / name, inputs, **settings, evaluation=policy)
        for name, policy in (("quiet", {}), ("every", every))
    )
    for file in ("encoder/model.safetensors", "head.safetensors"):
        left, right = (load_state_dict(model.path / file) for model in (one, other))
        assert all(torch.equal(left[name], value) for name, value in right.items())


@pytest.mark.parametrize(
    ("kind", "settings", "evaluation", "line"),
    [
        (EvaDetect, {"detector": DETECTOR}, "eval.panoptic",
         "in training: eval.panoptic needs panoptic, the model predicts boxes, masks"),
        (EvaSegment, {"task": "semantic"}, "eval.detection",
         "in training: eval.detection needs boxes or masks, the model predicts semantic"),
        (EvaSegment, {"task": "instance"}, "eval.detection",
         "expected the same classes in the model in training and val, got 'circle' where 'square' is"),
    ],
)  # fmt: skip
def test_what_a_training_cannot_evaluate_is_one_line_before_the_run(
    kind: type[Training], settings: dict[str, Any], evaluation: str, line: str, inputs: dict[str, Any], tmp_path: Path
) -> None:
    other = scenes_of(tmp_path / "val", 2, world={"image_size": 32, "shapes": ["square", "star"]})
    task = KINDS[evaluation](name="task", data="val")
    config = kind.model_validate(
        {"name": "model", "encoder": "encoder", "data": "scenes", "steps": 1, "evaluation": {"tasks": [task]}}
        | settings
    )
    folders = {name: one.path for name, one in {**inputs, "val": other}.items()}
    with pytest.raises(UserError, match=line):
        config.preflight(Preflight({}, folders))
    if "predicts" in line:  # which is known before there are data
        with pytest.raises(UserError, match=line):
            config.preflight(Preflight({}, {}))
    with pytest.raises(UserError, match=line):  # data that did not exist before the run
        config.run(context(tmp_path / "run", **{**inputs, "val": other}))


def test_predictions_of_files_are_no_evaluation_of_a_training() -> None:
    task = Detection(name="task", data="val", predictions={"a": "found.json"})
    with pytest.raises(ValueError, match="leave models, predictions and runtime out"):
        EvaSegment(name="model", encoder="encoder", data="scenes", steps=1, evaluation={"tasks": [task]})
