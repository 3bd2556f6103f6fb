"""N steps = k steps + kill + N - k steps, bit for bit; and what is left where the cut falls badly."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_toy
from train_toy import BAD, NUM_BAD, Regression, Samples, killed_plan, plan, train
from vfm.train import Preempted
from vfm.train.checkpoint import load_model, model_tensors


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the killed processes have: two threads add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def go(folder: Path, **data) -> tuple[dict[str, int], list]:
    task = Regression(dropout=0.2, norm=True)
    _, ctx, events = train(folder, killed_plan(), task=task, data=Samples(bad=BAD, **data))
    save = {name: value.clone() for name, value in model_tensors(task).items()}
    torch.save(save, folder / "final.pt")
    return dict(ctx.bad), events


def everything(folder: Path) -> dict[str, bytes]:
    """All files that a training left, the checkpoints included."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.suffix in KINDS}


KINDS = {".json", ".jsonl", ".safetensors"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    bad, _ = go(folder)
    return everything(folder), torch.load(folder / "final.pt", weights_only=True), bad


def assert_same(folder: Path, bad: dict[str, int], unbroken) -> None:
    files, weights, counts = unbroken
    assert everything(folder) == files
    final = torch.load(folder / "final.pt", weights_only=True)
    assert all(torch.equal(final[name], weights[name]) for name in weights)
    assert bad == counts == {"truncated": NUM_BAD}


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 11, 12, 13, 29, 39])
def test_a_training_cut_at_any_step_ends_as_the_unbroken_one(tmp_path, step, unbroken):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, stop=step)
    bad, events = go(tmp_path)
    assert_same(tmp_path, bad, unbroken)
    resumed = [event.data["message"] for event in events if event.type == "log"]
    assert resumed == ([f"resumes after step {step // 3 * 3} of 40"] if step >= 3 else [])


def test_a_training_cut_many_times_ends_as_the_unbroken_one(tmp_path, unbroken):
    for step in (5, 6, 8, 14, 27, 38):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, stop=step)
    bad, _ = go(tmp_path)
    assert_same(tmp_path, bad, unbroken)


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, train_toy.__file__, "slowly", str(folder)], env=environment)


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the training did not get there"
        time.sleep(0.005)


def newest(folder: Path) -> str:
    return max((path.name for path in (folder / "work").glob("step-*")), default="")


def test_kill_9_at_random_moments_and_the_next_run_ends_as_the_unbroken_one(tmp_path, unbroken):
    for seed in range(2):
        before = newest(tmp_path)
        child = start(tmp_path)
        try:
            wait_for(lambda known=before: newest(tmp_path) > known)
            time.sleep(random.Random(seed).uniform(0, 0.3))
        finally:
            child.kill()
        assert child.wait() == -signal.SIGKILL
    bad, _ = go(tmp_path)
    assert_same(tmp_path, bad, unbroken)


def test_sigterm_saves_a_checkpoint_at_once_and_says_so(tmp_path, unbroken):
    child = start(tmp_path)
    try:
        wait_for(lambda: any((tmp_path / "work").glob("step-*")))
        time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 128 + signal.SIGTERM
    finally:
        child.kill()
    assert not (tmp_path / "part").exists()
    bad, _ = go(tmp_path)
    assert_same(tmp_path, bad, unbroken)


def test_sigterm_stops_after_the_running_step_with_its_checkpoint(tmp_path):
    class Terminated(Samples):
        def batch(self, step, samples):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step, samples)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="toy: stopped by SIGTERM after step 6; the next run resumes from there"):
        train(tmp_path, plan(), data=Terminated())
    assert [folder.name for folder in (tmp_path / "work").glob("step-*")] == ["step-00000006"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_finished_training_is_not_run_again(tmp_path):
    first, *_ = train(tmp_path, plan(ema_decay=0.5))
    again, _, events = train(tmp_path, plan(ema_decay=0.5), data=Samples(stop=0))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not [event for event in events if event.type == "metrics"]


def test_a_checkpoint_that_cannot_be_read_is_told_and_the_one_before_is_used(tmp_path, unbroken):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, stop=20)
    newest = tmp_path / "work" / "step-00000018" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:50])
    bad, events = go(tmp_path)
    assert_same(tmp_path, bad, unbroken)
    (warning,) = [event.data["message"] for event in events if event.type == "warning"]
    assert "step-00000018: the checkpoint cannot be read" in warning


def test_only_the_newest_two_checkpoints_are_kept_and_leftovers_are_dropped(tmp_path):
    (tmp_path / "work" / "unfinished-step-00000003").mkdir(parents=True)
    train(tmp_path, plan(checkpoint={"every_steps": 2}))
    kept = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert kept == ["metrics.jsonl", "step-00000010", "step-00000012"]


def test_checkpoints_come_by_the_clock_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, plan(checkpoint={"every_minutes": 1e-9}), data=Samples(stop=5))
    assert sorted(path.name for path in (tmp_path / "work").glob("step-*")) == ["step-00000004", "step-00000005"]


def test_a_checkpoint_holds_plain_safetensors_and_json(tmp_path):
    task, *_ = train(tmp_path, plan(ema_decay=0.5))
    folder = tmp_path / "work" / "step-00000012"
    assert set(load_file(folder / "model.safetensors")) == set(task.state_dict())
    averaged = load_file(folder / "state" / "ema.safetensors")
    assert torch.equal(averaged["net.0.weight"], task.net[0].weight)
    assert set(load_file(folder / "state" / "optimizer.safetensors")) == {
        f"{name}/{key}" for name, _ in task.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert json.loads((folder / "meta.json").read_text())["step"] == 12


def test_a_full_disk_is_an_os_error_and_the_checkpoints_before_stay_whole(tmp_path, unbroken):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # stands for the disk: no file may grow beyond 300 bytes

    class Filling(Samples):
        def batch(self, step, samples):
            if step == 11:
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
            return super().batch(step, samples)

    try:
        with pytest.raises(OSError) as raised:
            train(tmp_path, plan(checkpoint={"every_steps": 4}), data=Filling())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    kept = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert kept == ["metrics.jsonl", "step-00000004", "step-00000008"]
    train(tmp_path, plan(checkpoint={"every_steps": 4}))
    assert (tmp_path / "part" / "metrics.jsonl").exists()


def test_tied_weights_are_saved_once_and_come_back_tied():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    first, second = Tied(), Tied()
    tensors = model_tensors(first)
    assert set(tensors) == {"embed.weight"}
    load_model(second, tensors)
    assert torch.equal(second.head.weight, first.head.weight)
    assert second.head.weight is second.embed.weight
