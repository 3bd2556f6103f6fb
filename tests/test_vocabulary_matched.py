"""Run the detectors of `vocabulary_claim_matched` at three steps, and read their scores along training."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import small
from vfm.cli import app

ANALYSIS = Path(__file__).parent.parent / "packages" / "eva" / "benchmarks"


@pytest.mark.slow
def test_only_the_compared_detectors_are_trained_and_evaluated_along_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["seeds=[1, 2]", "pool.num_samples=300", "unlabelled.num_samples=100", "objects.num_resamples=100"]
    settings += [f"{part}_120.num_samples=16" for part in ("train", "val")]
    for stage in ("teacher", "eva", "eva_120", "random_120"):
        settings += [f"{stage}.steps=3", f"{stage}.schedule.warmup_steps=0"]
    settings += [f"{start}_120.evaluation.every_steps=1" for start in ("eva", "random")]
    words = ["run", "vocabulary_claim_matched", "--until", "objects", "--store", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, *small.words(settings)])
    assert done.exit_code == 0, done.output
    artifacts = tmp_path / "runs" / "vocabulary_claim_matched" / "artifacts"
    trained = {folder.name for folder in artifacts.iterdir() if folder.exists() and "_1" in folder.name}
    assert trained == {
        "train_120",
        "val_120",
        *(f"{start}_120@{seed}" for start in ("eva", "random") for seed in (1, 2)),
    }
    monkeypatch.syspath_prepend(ANALYSIS)
    script = importlib.import_module("vocabulary_gap")
    for seed in (1, 2):
        curve = script.read_curve(artifacts / f"eva_120@{seed}")
        assert {name: len(values) for name, values in curve.items()} == dict.fromkeys(
            ("val/objects/box_ap", "val/box_ap_freq_r", "val/box_ap"), 3
        )
