"""`vfm eval` of detectors and segmenters, of transformers' and ours, on a user's labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vfm
from eva_toy import context
from vfm.data.synthetic.stages import ShapesScenes
from vfm.plugin import Artifact, DenseCheckpoint, Report

transformers = pytest.importorskip("transformers")


def test_models_of_transformers_are_evaluated_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = {"image_size": 32, "shapes": ["circle", "square"], "colours": ["red", "green"], "attributes": []}
    scenes = ShapesScenes(name="scenes", world=world, num_samples=8, max_objects=2).run(context(tmp_path / "scenes"))
    names = scenes.class_names
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = transformers.SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
            strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8,
            id2label=dict(enumerate(reversed(names))),
        )  # fmt: skip
        transformers.SegformerForSemanticSegmentation(config).save_pretrained(f"model{seed}")
        transformers.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(f"model{seed}")
    run = vfm.evaluate(["model0", "second=model1"], str(scenes.path), tasks="segmentation", progress=False)
    reports = [Artifact.load(link.resolve()) for link in (run.directory / "artifacts").iterdir()]
    (report,) = [one for one in reports if isinstance(one, Report) and one.task == "segmentation"]
    assert {metric.model for metric in report.metrics} == {"model0", "second"}
    assert report.comparisons[0].metric == "miou"
    (saved, *_) = [one for one in reports if isinstance(one, DenseCheckpoint)]
    assert saved.class_names == names
    again = vfm.evaluate(str(saved.path), str(scenes.path), tasks="segmentation", progress=False, name="again")
    values = [metric.value for metric in report.metrics if metric.name == "miou"]
    (value,) = [row["value"] for row in again.table().to_pylist() if row["metric"] == "miou"]
    assert value in values
