"""Two processes share an evaluation of multimodal models: the files are those of one process, bit for bit."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import mllm_toy
from two_processes import two_processes
from vfm.interfaces import LeftToFirst
from vfm.plugin import Artifact, ClipCheckpoint


def evaluate(folder: Path, inputs: dict[str, str]) -> None:
    asked, *models = [Artifact.load(path) for path in inputs.values()]
    named = dict(zip(list(inputs)[1:], models, strict=True))
    with suppress(LeftToFirst):
        mllm_toy.evaluate(folder, asked, named, micro_batch_size=3, max_bad_fraction=0.4)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.slow
def test_two_processes_evaluate_as_one(clip: ClipCheckpoint, tmp_path: Path) -> None:
    asked = mllm_toy.make_questions(tmp_path / "asked", pairs=6)
    models = [mllm_toy.train(tmp_path / f"model{seed}", clip, asked, steps=1, seed=seed) for seed in (0, 1)]
    inputs = {name: str(made.path) for name, made in zip(("asked", "one", "other"), (asked, *models), strict=True)}
    with two_processes(__file__, str(tmp_path / "two"), json.dumps(inputs)):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        evaluate(tmp_path / "one", inputs)
        torch.set_num_threads(threads)
    expected, found = files(tmp_path / "one/part"), files(tmp_path / "two/0/part")
    assert any(name.startswith("results/") for name in expected)
    assert expected == found
    assert not files(tmp_path / "two/1/part")


if __name__ == "__main__":
    torch.set_num_threads(1)
    evaluate(Path(sys.argv[1]) / os.environ["RANK"], json.loads(sys.argv[2]))
