"""The page on serving: its files, as they stand there, give the probabilities of `vfm predict`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vfm
from outside import ROOT
from vfm.models import build_clip, save_clip

PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
NAMES = ["red star", "blue circle"]
REQUESTS = """
import json
from fastapi.testclient import TestClient
from app import app
client = TestClient(app)
photo = open("photo.jpg", "rb").read()
answer = client.post("/classify", files=[("files", ("a.jpg", photo)), ("files", ("b.jpg", photo))])
broken = client.post("/classify", files=[("files", ("a.jpg", b"no image"))])
large = client.post("/classify", files=[("files", ("a.jpg", bytes(10_000_001)))])
print(json.dumps([client.get("/health").json(), answer.json(), broken.status_code, large.status_code]))
"""


def needs(*libraries: str) -> pytest.MarkDecorator:
    missing = [name for name in libraries if not find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model, an image that is not square, and the files of the page."""
    folder = tmp_path_factory.mktemp("serving")
    save_clip(build_clip("ViT-Nano-8-32", seed=0), folder / "CLIP")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 91, 3), np.uint8)
    Image.fromarray(pixels).resize((455, 300)).save(folder / "photo.jpg")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def expected(here: Path) -> dict[str, float]:
    found = vfm.predict(here / "CLIP", here / "photo.jpg", NAMES)
    return {row["label"]: row["probability"] for row in found.table().to_pylist()}


@pytest.fixture(scope="module")
def in_onnx(here: Path) -> Path:
    vfm.export(here / "CLIP", "onnx", here / "clip-onnx")
    run(here, "write_classes.py")
    return here


def run(folder: Path, *words: str) -> str:
    command = [sys.executable, "-W", "ignore", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_these_files() -> None:
    assert list(FILES) == ["write_classes.py", "classifier.py", "app.py", "pipeline.py"]
    assert len(FILES["app.py"].splitlines()) <= 40


@needs("onnxruntime", "onnxscript")
def test_onnxruntime_gives_the_probabilities_of_predict(in_onnx: Path, expected: dict[str, float]) -> None:
    probabilities = json.loads(run(in_onnx, "classifier.py").replace("'", '"'))
    assert probabilities == pytest.approx(expected, abs=1e-4)
    assert not re.search(r"import (torch|vfm)", FILES["classifier.py"] + FILES["app.py"])


@needs("onnxruntime", "onnxscript", "fastapi", "httpx", "multipart")
def test_the_app_answers_with_the_best_classes_and_refuses_other_files(
    in_onnx: Path, expected: dict[str, float]
) -> None:
    health, answer, broken, large = json.loads(run(in_onnx, "-c", REQUESTS))
    assert (health["classes"], broken, large) == (2, 415, 413)
    assert [result["file"] for result in answer] == ["a.jpg", "b.jpg"]
    for result in answer:
        classes = {best["class"]: best["probability"] for best in result["classes"]}
        assert classes == pytest.approx(expected, abs=1e-4)
        assert list(classes) == sorted(classes, key=lambda name: -classes[name])


@needs("transformers")
def test_the_pipeline_of_transformers_gives_the_same(here: Path, expected: dict[str, float]) -> None:
    vfm.export(here / "CLIP", "hf", here / "clip-hf")
    lines = run(here, "pipeline.py").splitlines()
    scores = {name: float(score) for name, _, score in (line.rpartition(" ") for line in lines)}
    assert scores == pytest.approx(expected, abs=5e-3)
