"""Two processes on gloo tune as one does: each takes half of the batch, and both end with the same tower."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diva_toy import context, tune_config, weights
from two_processes import two_processes
from vfm.plugin import Artifact, ClipCheckpoint, GeneratorCheckpoint, Pool, TrainingRuntime
from vfm.train import distributed, fit
from vfm_diva.tune.tune import build_data, build_task

PARTS: dict[str, Any] = {
    "adapter": {"type": "linear"},
    "condition": {"type": "patches", "share": 0.5},
    "anchor": {"type": "relational", "prompts": ["red", "blue"]},
    "global_batch_size": 16,
    "steps": 3,
    "optimizer": {"type": "sgd", "weight_decay": 0.0, "grad_clip_norm": 1.0},
    "lr": 0.1,
    "log_every": 1,
}


def tune(folder: Path, inputs: dict[str, str], rank: int, num_processes: int, parallel: str = "ddp") -> None:
    """Train, and write the tower and the keys of the samples of this process."""
    config = tune_config(**PARTS, runtime={"device": "cpu", "parallel": parallel})
    ctx = context(config, folder, **{name: Artifact.load(path) for name, path in inputs.items()})
    for each in (ctx.directory, ctx.work):
        each.mkdir(parents=True, exist_ok=True)
    task = build_task(config, ctx)
    data = build_data(config, ctx, task)
    fit(task, data, config, ctx)
    if rank == 0 or parallel == "ddp":  # with FSDP only the first process has the weights
        save_file(weights(task.visual), folder / f"{rank}.safetensors")
    seen = [batch.keys for step in data.steps(0, 3, rank=rank, world_size=num_processes) for batch in step]
    (folder / f"{rank}.json").write_text(json.dumps(seen))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_tune_as_one(
    clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path, parallel: str
) -> None:
    inputs = {name: str(made.path) for name, made in (("clip", clip), ("prior", stable_diffusion), ("pool", pool))}
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with two_processes(__file__, str(folders[1]), json.dumps(inputs), parallel):
        tune(folders[0], inputs, 0, 1)
    one, first, *others = (load_file(file) for file in (folders[0] / "0.safetensors", *sorted(folders[1].glob("*.s*"))))
    assert len(others) == (parallel == "ddp")
    assert all(torch.equal(first[name], second[name]) for second in others for name in first)
    torch.testing.assert_close(first, one, atol=1e-5, rtol=1e-4)
    assert (one["proj"] - load_file(clip.path / "open_clip_model.safetensors")["visual.proj"]).abs().max() > 1e-4
    whole, *halves = (
        json.loads(file.read_text()) for file in (folders[0] / "0.json", *sorted(folders[1].glob("*.json")))
    )
    for step, ours, theirs in zip(whole, *halves, strict=True):
        assert not {*ours} & {*theirs}
        assert {*ours} | {*theirs} == {*step}


def test_an_anchor_of_weights_cannot_be_sharded() -> None:
    with pytest.raises(ValueError, match=r"anchor: l2_sp compares whole weights: set runtime.parallel: ddp"):
        tune_config(anchor={"type": "l2_sp"}, runtime={"parallel": "fsdp"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed(TrainingRuntime(device="cpu")):
        tune(Path(sys.argv[1]), json.loads(sys.argv[2]), int(os.environ["RANK"]), 2, sys.argv[3])
