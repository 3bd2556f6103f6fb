"""A checkpoint with any damage is skipped with a warning, and the training ends as if it had not been there."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from train_toy import Regression, Samples, plan, train
from vfm.plugin import UserError
from vfm.storage.integrity import read_sealed
from vfm.train import Task
from vfm.train.checkpoint.checkpoint import Checkpoints, Snapshot
from vfm.train.parallel.dist import DistributedWorld

SETTINGS = {"checkpoint": {"every_steps": 3}, "ema_decay": 0.9}
NEWEST = "step-00000009"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A training of 12 steps that was interrupted after step 10."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        train(folder, plan(**SETTINGS), data=Samples(stop=10))
    return folder


@pytest.fixture(scope="module")
def final(tmp_path_factory) -> list[torch.Tensor]:
    """The weights of the same training, uninterrupted."""
    task, *_ = train(tmp_path_factory.mktemp("final"), plan(**SETTINGS))
    return [param.detach().clone() for param in task.parameters()]


def resume(folder: Path) -> tuple[list[torch.Tensor], list[str]]:
    """Return the final weights, and the warnings."""
    task, _, events = train(folder, plan(**SETTINGS), task=Regression())
    return list(task.parameters()), [event.data["message"] for event in events if event.type == "warning"]


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


FILES = ["model.safetensors", "state/optimizer.safetensors", "state/ema.safetensors", "meta.json"]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_noticed(tmp_path, stopped, final, name):
    size = (stopped / "work" / NEWEST / name).stat().st_size
    for bit in random.Random(name).sample(range(8 * size), 3):
        shutil.rmtree(tmp_path)
        shutil.copytree(stopped, tmp_path)
        flip(tmp_path / "work" / NEWEST / name, bit)
        weights, (warning,) = resume(tmp_path)
        assert f"{NEWEST}: the checkpoint cannot be read" in warning
        assert all(torch.equal(a, b) for a, b in zip(weights, final, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_noticed(tmp_path, stopped, final, name):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "work" / NEWEST / name).unlink()
    weights, (warning,) = resume(tmp_path)
    assert name in warning
    assert all(torch.equal(a, b) for a, b in zip(weights, final, strict=True))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"step"', "{}", '{"step": 6}', '{"step": "x", "files": []}', "{"])
def test_meta_that_is_no_object_or_of_another_step_falls_back(tmp_path, stopped, final, text):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "work" / NEWEST / "meta.json").write_text(text)
    weights, (warning,) = resume(tmp_path)
    assert f"{NEWEST}: the checkpoint cannot be read" in warning
    assert all(torch.equal(a, b) for a, b in zip(weights, final, strict=True))


def test_checkpoint_under_the_name_of_another_step_falls_back(tmp_path, stopped, final):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "work" / NEWEST).rename(tmp_path / "work" / "step-00000011")
    weights, (warning,) = resume(tmp_path)
    assert "step-00000011: the checkpoint cannot be read (meta.json belongs to step 9)" in warning
    assert all(torch.equal(a, b) for a, b in zip(weights, final, strict=True))


def test_checkpoint_of_an_older_version_has_no_hashes_and_is_read(tmp_path, stopped, final):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    meta = tmp_path / "work" / NEWEST / "meta.json"
    record = read_sealed(meta)
    del record["files"]
    meta.write_text(json.dumps(record) + "\n")
    weights, warnings = resume(tmp_path)
    assert warnings == []
    assert all(torch.equal(a, b) for a, b in zip(weights, final, strict=True))


def test_a_copy_of_a_checkpoint_beside_it_is_left_alone(tmp_path, stopped, final):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    copy = tmp_path / "work" / f"{NEWEST}-copy"
    shutil.copytree(tmp_path / "work" / NEWEST, copy)
    weights, warnings = resume(tmp_path)
    assert (warnings, copy.is_dir()) == ([], True)
    assert all(torch.equal(a, b) for a, b in zip(weights, final, strict=True))


def test_a_damaged_checkpoint_is_not_one_of_those_that_are_kept(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "work" / NEWEST / "meta.json").unlink()
    frequent = plan(**SETTINGS | {"checkpoint": {"every_steps": 1, "keep_last": 1}})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, frequent, data=Samples(stop=8))
    _, _, events = train(tmp_path, frequent)
    assert "resumes after step 8 of 12" in [event.data.get("message") for event in events]


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_lines_that_are_gone_are_reported_and_the_training_ends(tmp_path, stopped, final, num_bytes):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "work" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:num_bytes])
    weights, (warning,) = resume(tmp_path)
    assert "metrics.jsonl: expected" in warning
    assert all(torch.equal(a, b) for a, b in zip(weights, final, strict=True))
    lines = (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [12]


def test_checkpoint_of_another_training_must_be_readable(stopped):
    found = Checkpoints(stopped / "work", plan(**SETTINGS).checkpoint, print, DistributedWorld(torch.device("cpu")), {})
    assert found.read(stopped / "work" / "step-00000006").step == 6
    with pytest.raises(UserError, match=r"step-00000003: the checkpoint cannot be read .*no such file"):
        found.read(stopped / "work" / "step-00000003")


def test_a_wait_that_ctrl_c_interrupts_can_be_repeated(tmp_path, monkeypatch):
    """`Thread.join` took the writing thread for ended, so the process ended in the middle of its work."""
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.1), fsync(descriptor)))
    saved = Checkpoints(tmp_path, plan(**SETTINGS).checkpoint, print, DistributedWorld(torch.device("cpu")), {})
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        saved.save(Snapshot(3, {"model": {"w": torch.ones(2)}, "optimizer": {"m": torch.ones(2)}}, {}))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            saved.wait()
        assert saved.found() == []
        saved.wait(30)
        assert saved.found() == [tmp_path / "step-00000003"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Large(Task[Any]):
    """Change a buffer in each forward pass, and all weights in each step, faster than they can be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4_000_000))
        self.passes: torch.Tensor
        self.register_buffer("passes", torch.zeros(1_000_000))

    def forward(self, inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.passes += 1
        return self.weight.sum(), {}


@pytest.mark.parametrize("skipped", [[], [2]])
def test_a_checkpoint_has_the_weights_of_its_step_though_the_training_goes_on_while_they_are_copied(tmp_path, skipped):
    def state(folder: Path, steps: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        settings = {"checkpoint": {"every_steps": 1, "keep_last": 9}, "ema_decay": 0.5}
        left_out = [step for step in skipped if step <= steps]
        train(folder, plan(steps=steps, skip_steps=left_out, **settings), task=Large())
        files = ("model.safetensors", "state/ema.safetensors", "state/optimizer.safetensors")
        return tuple(load_file(folder / "work/step-00000001" / file) for file in files)

    for expected, found in zip(state(tmp_path / "one", 1), state(tmp_path / "four", 4), strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_the_lines_that_a_checkpoint_counts_are_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced: dict[int, int] = {}  # bytes by inode
    missing: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        facts = os.fstat(descriptor)
        synced[facts.st_ino] = facts.st_size

    def checked_rename(source: Path, target: Path) -> None:
        counted = json.loads((Path(source) / "meta.json").read_text())["curves"]["file_bytes"]
        if synced.get((tmp_path / "work" / "metrics.jsonl").stat().st_ino, 0) < counted:
            missing.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", checked_rename)
    train(tmp_path, plan(log_every=2, checkpoint={"every_steps": 3}))
    assert synced
    assert missing == []
