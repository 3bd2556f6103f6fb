"""`vfm eval` of detectors and segmenters, of transformers' and ours, on a user's labels."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch

import vfm
from eva_toy import context
from vfm.data.synthetic.stages import ShapesScenes
from vfm.flow.requests.dense_tasks import import_settings
from vfm.flow.requests.inputs import Input
from vfm.plugin import AnnotatedImages, Artifact, DenseCheckpoint, Report, UserError

transformers = pytest.importorskip("transformers")


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnnotatedImages:
    """Eight scenes with all kinds of labels, in the working folder."""
    monkeypatch.chdir(tmp_path)
    world = {"image_size": 32, "shapes": ["circle", "square"], "colours": ["red", "green"], "attributes": []}
    stage = ShapesScenes(name="scenes", world=world, num_samples=8, max_objects=2)
    made = stage.run(context(tmp_path / "scenes"))
    assert isinstance(made, AnnotatedImages)
    return made


def save_segformer(folder: Path, names: list[str], seed: int = 0) -> None:
    torch.manual_seed(seed)
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, id2label=dict(enumerate(reversed(names))),
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def save_yolos(folder: Path, names: list[str]) -> None:
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[32, 32],
        num_detection_tokens=7, id2label=dict(enumerate(names)),
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(folder)
    transformers.YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def save_eomt(folder: Path, names: list[str]) -> None:
    config = transformers.EomtConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=16, num_queries=7,
        num_blocks=2, num_register_tokens=4, id2label=dict(enumerate(names)),
    )  # fmt: skip
    transformers.EomtForUniversalSegmentation(config).save_pretrained(folder)
    size = {"shortest_edge": 32, "longest_edge": 32}
    transformers.EomtImageProcessor(size=size, do_pad=True, do_split_image=False).save_pretrained(folder)


def reports_of(run: vfm.Run) -> dict[str, Report]:
    """The reports of a run's evaluations by task."""
    artifacts = [Artifact.load(link.resolve()) for link in (run.directory / "artifacts").iterdir()]
    return {made.task: made for made in artifacts if isinstance(made, Report) and made.task != "summary"}


def test_models_of_transformers_are_evaluated_by_one_command(tmp_path: Path, scenes: AnnotatedImages) -> None:
    names = scenes.class_names
    for seed in (0, 1):
        save_segformer(tmp_path / f"model{seed}", names, seed)
    run = vfm.evaluate(["model0", "second=model1"], str(scenes.path), tasks="segmentation", progress=False)
    report = reports_of(run)["segmentation"]
    assert {metric.model for metric in report.metrics} == {"model0", "second"}
    assert report.comparisons[0].metric == "miou"
    (saved,) = [link for link in (run.directory / "artifacts").iterdir() if link.name == "model0"]
    assert DenseCheckpoint.load(saved.resolve()).class_names == names
    again = vfm.evaluate(str(saved.resolve()), str(scenes.path), tasks="segmentation", progress=False, name="again")
    values = [metric.value for metric in report.metrics if metric.name == "miou"]
    (value,) = [row["value"] for row in again.table().to_pylist() if row["metric"] == "miou"]
    assert value in values


def test_without_tasks_each_model_is_evaluated_on_what_it_predicts(tmp_path: Path, scenes: AnnotatedImages) -> None:
    save_segformer(tmp_path / "maps", scenes.class_names)
    save_yolos(tmp_path / "boxes", scenes.class_names)
    run = vfm.evaluate(["maps", "boxes"], str(scenes.path), progress=False)
    models = {task: {metric.model for metric in report.metrics} for task, report in reports_of(run).items()}
    assert models == {"detection": {"boxes"}, "segmentation": {"maps"}}


def test_a_model_of_queries_predicts_the_most_that_the_labels_allow(tmp_path: Path, scenes: AnnotatedImages) -> None:
    save_eomt(tmp_path / "queries", scenes.class_names)
    run = vfm.evaluate("queries", str(scenes.path), progress=False)
    assert set(reports_of(run)) == {"detection", "segmentation", "panoptic"}
    saved = DenseCheckpoint.load((run.directory / "artifacts/queries").resolve())
    assert saved.tasks == ["panoptic", "semantic", "boxes", "masks"]


def test_labels_without_a_task_of_the_model_are_one_line(tmp_path: Path, scenes: AnnotatedImages) -> None:
    save_yolos(tmp_path / "detector", scenes.class_names)
    AnnotatedImages.create(scenes.path, **{**scenes.model_dump(), "labels": ["semantic"]})
    with pytest.raises(UserError) as caught:
        vfm.evaluate("detector", str(scenes.path), progress=False)
    expected = "artifact has semantic, detector predicts boxes: expected labels of a kind that a model predicts"
    assert str(caught.value) == expected
    with pytest.raises(UserError, match="artifact, segmentation: detector predicts boxes, segmentation needs semantic"):
        vfm.evaluate("detector", str(scenes.path), tasks="segmentation", progress=False)


def test_a_model_of_the_hub_is_evaluated_from_the_cache_without_a_network(
    tmp_path: Path, scenes: AnnotatedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub/models--org--segformer"
    (repository / "refs").mkdir(parents=True)
    for revision, seed in (("main", 0), ("v2", 1)):
        save_segformer(repository / "snapshots" / f"{revision}0", scenes.class_names, seed)
        (repository / "refs" / revision).write_text(f"{revision}0")
    save_segformer(tmp_path / "local", scenes.class_names, 1)
    models = ["hf-hub:org/segformer", "hf-hub:org/segformer@v2", "local"]
    report = reports_of(vfm.evaluate(models, str(scenes.path), progress=False))["segmentation"]
    values = {metric.model: metric.value for metric in report.metrics if metric.name == "miou"}
    assert list(values) == ["org-segformer", "org-segformer-v2", "local"]
    assert values["org-segformer-v2"] == values["local"] != values["org-segformer"]


def test_queries_scored_on_objects_and_maps_are_taken_for_panoptic() -> None:
    model = Input("queries", DenseCheckpoint, predicts=("boxes", "masks", "semantic", "panoptic"))
    expected = {"detection": "instance", "segmentation": None, "panoptic": "panoptic"}
    assert {task: import_settings(model, [], {task}).get("task") for task in expected} == expected
    assert import_settings(model, [], {"detection", "segmentation"}) == {"task": "panoptic"}
