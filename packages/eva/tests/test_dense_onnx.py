"""Detectors and segmenters as ONNX: equal to torch, and run and drawn by the example without torch."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vfm
from vfm.cli import app
from vfm.eval.dense.dense_models import load_predictor
from vfm.models import build_vision
from vfm.plugin import DenseCheckpoint, UserError
from vfm_eva.dense.detect.checkpoint import build_detector, save_detector
from vfm_eva.dense.detect.settings import DetectorSettings
from vfm_eva.dense.segment.model import HeadRecord, build_linear, build_queries, save_segmenter
from vfm_eva.dense.segment.stages import LinearSegmentation, QueriesSegmentation

ROOT = Path(__file__).parents[3]
SIDE, NAMES = 32, ["red", "green", "blue"]
CPU = torch.device("cpu")


def moved(module: Any) -> Any:
    """Add noise to weights, since new heads predict alike everywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def detector(folder: Path, **settings: Any) -> DenseCheckpoint:
    cascade = {"num_rois": 16, "num_convs": 1, "hidden": 16, "mask_convs": 1}
    proposals = {"num_convs": 1, "num_samples": 32, "before_nms": 60, "num_proposals": 20}
    facts = {"image_size": SIDE, "channels": 16, "cascade": cascade, "proposals": proposals, **settings}
    encoder = build_vision("eva02_pico_patch8_32", num_classes=0, seed=0)
    model = build_detector(encoder, 3, DetectorSettings.model_validate(facts))
    moved(model.head)
    return save_detector(model.eval(), folder, NAMES)


def segmenter(folder: Path, head: str, task: str = "panoptic") -> DenseCheckpoint:
    encoder = build_vision("eva02_pico_patch8_32", num_classes=0, seed=0)
    if head == "queries":
        settings: Any = QueriesSegmentation(num_queries=5, num_blocks=1)
        model: Any = build_queries(settings, encoder, 3, frozen=False)
    else:
        settings = LinearSegmentation(layers=[0, 1])
        model = build_linear(settings, encoder, 3, frozen=False)
    task = task if head == "queries" else "semantic"
    record = HeadRecord(settings.model_dump(mode="json"), task, frozen=False, things=[True] * 3)
    return save_segmenter(moved(model), record, folder, NAMES)


def image_of(side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8))


def outputs_of(folder: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    facts = json.loads((folder / "model.json").read_text())
    assert facts["class_names"] == NAMES
    session = onnxruntime.InferenceSession(str(folder / facts["file"]), providers=["CPUExecutionProvider"])
    return dict(zip(facts["outputs"], session.run(None, {"pixels": pixels}), strict=True))


def without_torch(folder: Path, image: Path, out: Path) -> None:
    """Run the example where torch cannot be imported."""
    code = "import sys, runpy; sys.modules['torch'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    script = ROOT / "examples/dense_onnx.py"
    code = code.replace("sys.argv[0]", repr(str(script)))
    command = [sys.executable, "-c", code, str(folder), str(image), "--out", str(out), "--min-score", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as drawn, Image.open(image) as source:
        assert drawn.size == source.size


@pytest.mark.parametrize(
    "settings",
    [
        {"masks": True},
        {"windows": {"window": 2, "global_blocks": [1]}},
        {"image_size": 2 * SIDE},  # rotary positions at another size than the encoder's
        {"image_size": 2 * SIDE, "windows": {"window": 4, "global_blocks": [1]}},
    ],
)
def test_a_detector_has_suppression_inside_and_finds_what_torch_finds(tmp_path: Path, settings: dict[str, Any]) -> None:
    checkpoint = detector(tmp_path / "model", selection={"score": 0.0}, **settings)
    export = vfm.export(tmp_path / "model", "onnx", tmp_path / "onnx")
    assert "onnxruntime differs from torch by at most" in export.notes[0]
    image = image_of()
    (expected,) = load_predictor(checkpoint, CPU).detect([image])
    image.save(tmp_path / "image.png")
    found = runpy.run_path(str(ROOT / "examples/dense_onnx.py"))["run"](tmp_path / "onnx", image)
    assert found["labels"].tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=1e-2)
    assert found["masks"].shape == (len(expected.labels), 28, 28)
    without_torch(tmp_path / "onnx", tmp_path / "image.png", tmp_path / "drawn.png")


def test_the_example_finds_the_objects_of_queries_that_torch_finds(tmp_path: Path) -> None:
    checkpoint = segmenter(tmp_path / "model", "queries", "instance")
    vfm.export(tmp_path / "model", "onnx", tmp_path / "onnx")
    image = image_of(48)
    image.save(tmp_path / "image.png")
    (expected,) = load_predictor(checkpoint, CPU).detect([image])
    found = runpy.run_path(str(ROOT / "examples/dense_onnx.py"))["run"](tmp_path / "onnx", image)
    assert len(found["scores"]) == len(expected.scores) > 3
    assert expected.masks is not None
    order = np.argsort(-expected.scores, kind="stable")
    np.testing.assert_allclose(found["scores"], expected.scores[order], atol=0.02)
    best = order[0]
    assert found["labels"][0] == expected.labels[best]
    assert (found["inside"][0] == expected.masks[best]).mean() > 0.95
    without_torch(tmp_path / "onnx", tmp_path / "image.png", tmp_path / "drawn.png")


def test_an_image_without_objects_has_none(tmp_path: Path) -> None:
    detector(tmp_path / "model", selection={"score": 0.999})
    vfm.export(tmp_path / "model", "onnx", tmp_path / "onnx")
    found = outputs_of(tmp_path / "onnx", np.zeros((1, 3, SIDE, SIDE), dtype=np.float32))
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 0)


@pytest.mark.parametrize("head", ["queries", "linear"])
def test_a_segmenter_equals_torch_for_any_batch(tmp_path: Path, head: str) -> None:
    checkpoint = segmenter(tmp_path / "model", head)
    done = CliRunner().invoke(
        app, ["export", str(tmp_path / "model"), "--format", "onnx", "--out", str(tmp_path / "onnx")]
    )
    assert done.exit_code == 0, done.output
    crops = np.stack([np.asarray(image_of()), 255 - np.asarray(image_of())] * 2)
    predictor = load_predictor(checkpoint, CPU)
    found = outputs_of(tmp_path / "onnx", predictor._pixels(torch.tensor(crops)).numpy())
    expected = torch.tensor(predictor.crop_logits(crops))
    if head == "linear":  # probabilities
        expected = expected.softmax(dim=1)
    else:
        assert found["classes"].shape == (4, 5, 4)
        assert found["masks"].shape[:2] == (4, 5)
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)
    image_of(50).save(tmp_path / "image.png")
    without_torch(tmp_path / "onnx", tmp_path / "image.png", tmp_path / "drawn.png")


def test_another_format_is_refused(tmp_path: Path) -> None:
    segmenter(tmp_path / "model", "linear")
    with pytest.raises(UserError, match="a model with a dense head is exported as onnx or pt2, got timm"):
        vfm.export(tmp_path / "model", "timm", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch, about its own file
@pytest.mark.parametrize("head", ["queries", "linear"])
def test_a_segmenter_exported_by_torch_equals_it_for_any_batch(tmp_path: Path, head: str) -> None:
    checkpoint = segmenter(tmp_path / "model", head)
    export = vfm.export(tmp_path / "model", "pt2", tmp_path / "out")
    assert "differs from the model by at most" in export.notes[0]
    facts = json.loads((tmp_path / "out/model.json").read_text())
    program = torch.export.load(tmp_path / "out" / facts["file"]).module()
    predictor = load_predictor(checkpoint, CPU)
    pixels = predictor._pixels(torch.tensor(np.stack([np.asarray(image_of())] * 4)))
    with torch.no_grad():
        outputs = program(pixels)
        expected = predictor.onnx_graph().module(pixels)
    if head == "linear":
        outputs, expected = (outputs,), (expected,)
    assert len(facts["outputs"]) == len(outputs)
    for output, of_model in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, of_model, atol=1e-6, rtol=1e-5)


def test_a_detector_is_not_exported_by_torch(tmp_path: Path) -> None:
    detector(tmp_path / "model")
    with pytest.raises(UserError, match="depends on the image; export the detector as onnx"):
        vfm.export(tmp_path / "model", "pt2", tmp_path / "out")
    assert not (tmp_path / "out").exists()
