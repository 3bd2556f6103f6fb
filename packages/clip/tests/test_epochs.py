"""A training of `epochs` is the training of the number of steps that follows from the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from clip_world import VIT, make_pool, plan, run_stage
from vfm.cli import app
from vfm.plugin import Event, Preflight, UserError
from vfm_clip.stages import ClipTrain

NUM_IMAGES, BATCH = 56, 16  # two epochs are 112 samples, 7 steps
SETTINGS: dict[str, Any] = {
    "global_batch_size": BATCH,
    "schedule": {"warmup_steps": 2},
    "vision": {"patch_dropout": 0.5, "unmasked_steps": 3},
    "checkpoint": {"every_steps": 3},
    "log_every": 1,
}


def test_epochs_are_the_equal_number_of_steps_also_after_a_cut(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    assert pool.num_samples == NUM_IMAGES
    in_epochs = plan(steps=None, epochs=2, **SETTINGS)

    def cut(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(in_epochs, tmp_path / "epochs", send=cut, pool=pool)
    events: list[Event] = []
    resumed, _ = run_stage(in_epochs, tmp_path / "epochs", send=events.append, pool=pool)
    assert [event.data["step"] for event in events if event.type == "metrics"] == [4, 5, 6, 7]
    in_steps, _ = run_stage(plan(steps=7, **SETTINGS), tmp_path / "steps", pool=pool)
    for file in ("open_clip_model.safetensors", "metrics.jsonl"):
        assert (resumed.path / file).read_bytes() == (in_steps.path / file).read_bytes()


def test_the_steps_are_in_the_estimate_and_in_the_manifest(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    stage = {"kind": "clip.train", "name": "clip", "data": str(tmp_path / "pool"), "model": VIT, "epochs": 0.5}
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"stages": [{**stage, "global_batch_size": 8, "runtime": {"device": "cpu"}}]}))
    estimate = CliRunner().invoke(app, ["plan", str(recipe), "--estimate", "--store", str(tmp_path / "store")])
    assert "clip: 0.5 epochs are 3 steps of 8" in estimate.output
    done = CliRunner().invoke(app, ["run", str(recipe), "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    assert f"model: {tmp_path}/store/runs/r@1/artifacts/clip\n" in done.output
    (manifest,) = (tmp_path / "store").glob("clip.train-*/manifest.json")
    assert json.loads(manifest.read_text())["steps"] == 3


def test_a_mixture_has_the_samples_of_all_datasets(tmp_path: Path) -> None:
    artifacts = {"a": make_pool(tmp_path / "a").path, "b": make_pool(tmp_path / "b").path}
    mixture = plan(steps=None, epochs=1, data=[{"data": "a"}, {"data": "b"}], global_batch_size=BATCH)
    assert mixture.with_steps(Preflight({}, artifacts).artifact).num_steps == 7
    unknown = mixture.with_steps(Preflight({}, {"a": artifacts["a"]}).artifact)
    assert unknown == mixture
    with pytest.raises(ValueError, match="1 epochs have no number of steps before the data are known"):
        assert unknown.num_steps


def test_settings_that_name_steps_are_checked_when_the_data_are_known(tmp_path: Path) -> None:
    artifacts = {"pool": make_pool(tmp_path / "pool").path}
    for wrong, line in (
        ({"skip_steps": [8]}, r"clip: skip_steps: expected some of the steps 1 to 7, got \[8\]"),
        ({"vision": {"patch_dropout": 0.5, "unmasked_steps": 8}}, "clip: vision.unmasked_steps must be at most 7"),
    ):
        stage = plan(steps=None, epochs=2, **{**SETTINGS, **wrong})
        with pytest.raises(UserError, match=line):
            stage.with_steps(Preflight({}, artifacts).artifact)


def test_a_training_has_one_length() -> None:
    with pytest.raises(ValidationError, match="give exactly one of steps, samples_seen and epochs"):
        ClipTrain(name="clip", data="pool", model=VIT, steps=3, epochs=2)  # type: ignore[arg-type]
