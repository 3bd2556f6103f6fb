"""An interrupted and resumed training must equal an uninterrupted one bit for bit, wherever it is cut off."""

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
from vfm.plugin import Preempted, UserError
from vfm.train.optim.state import load_model, model_tensors


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread, as the killed processes do: two threads add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path, **data) -> tuple[dict[str, int], list]:
    task = Regression(dropout=0.2, norm=True)
    _, ctx, events = train(folder, killed_plan(), task=task, data=Samples(bad=BAD, **data))
    tensors = {name: value.clone() for name, value in model_tensors(task).items()}
    torch.save(tensors, folder / "final.pt")
    return dict(ctx.bad), events


def file_contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a training, including checkpoints."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.suffix in KINDS}


KINDS = {".json", ".jsonl", ".safetensors"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    bad, _ = run(folder)
    return file_contents(folder), torch.load(folder / "final.pt", weights_only=True), bad


def assert_same(folder: Path, bad: dict[str, int], uninterrupted) -> None:
    files, weights, counts = uninterrupted
    assert file_contents(folder) == files
    final = torch.load(folder / "final.pt", weights_only=True)
    assert all(torch.equal(final[name], weights[name]) for name in weights)
    assert bad == counts == {"truncated": NUM_BAD}


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 11, 12, 13, 29, 39])
def test_training_interrupted_at_any_step_ends_as_the_uninterrupted_one(tmp_path, step, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=step)
    bad, events = run(tmp_path)
    assert_same(tmp_path, bad, uninterrupted)
    resumed = [event.data["message"] for event in events if event.type == "log"]
    assert resumed == ([f"resumes after step {step // 3 * 3} of 40"] if step >= 3 else [])


def test_training_interrupted_many_times_ends_as_the_uninterrupted_one(tmp_path, uninterrupted):
    for step in (5, 6, 8, 14, 27, 38):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop=step)
    bad, _ = run(tmp_path)
    assert_same(tmp_path, bad, uninterrupted)


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, train_toy.__file__, "slowly", str(folder)], env=environment)


def wait_for(condition, seconds: float = 1800.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def newest(folder: Path) -> str:
    return max((path.name for path in (folder / "work").glob("step-*")), default="")


@pytest.mark.slow
def test_training_killed_at_random_moments_ends_as_the_uninterrupted_one(tmp_path, uninterrupted):
    for seed in range(2):
        before = newest(tmp_path)
        child = start(tmp_path)
        try:
            wait_for(lambda known=before: newest(tmp_path) > known)
            time.sleep(random.Random(seed).uniform(0, 0.3))
        finally:
            child.kill()
        assert child.wait() == -signal.SIGKILL
    bad, _ = run(tmp_path)
    assert_same(tmp_path, bad, uninterrupted)


def test_sigterm_saves_a_checkpoint_and_exits_with_its_code(tmp_path, uninterrupted):
    child = start(tmp_path)
    try:
        wait_for(lambda: any((tmp_path / "work").glob("step-*")))
        time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(300) == 128 + signal.SIGTERM  # a busy machine needs half a minute
    finally:
        child.kill()
    assert not (tmp_path / "part").exists()
    bad, _ = run(tmp_path)
    assert_same(tmp_path, bad, uninterrupted)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1")])
def test_a_signal_stops_after_the_running_step_with_its_checkpoint(tmp_path, number, name):
    class Terminated(Samples):
        def batch(self, step, samples):
            if step == 5:
                os.kill(os.getpid(), number)
            return super().batch(step, samples)

    before = signal.getsignal(number)
    with pytest.raises(Preempted, match=f"toy: stopped by {name} after step 6; the next run resumes from there") as end:
        train(tmp_path, plan(), data=Terminated())
    assert end.value.code == 128 + number
    assert [folder.name for folder in (tmp_path / "work").glob("step-*")] == ["step-00000006"]
    assert signal.getsignal(number) == before


def test_finished_training_does_not_run_again(tmp_path):
    first, *_ = train(tmp_path, plan(ema_decay=0.5))
    again, _, events = train(tmp_path, plan(ema_decay=0.5), data=Samples(stop=0))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not [event for event in events if event.type == "metrics"]


def test_damaged_checkpoint_is_a_warning_and_the_previous_one_is_used(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=20)
    newest = tmp_path / "work" / "step-00000018" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:50])
    bad, events = run(tmp_path)
    assert_same(tmp_path, bad, uninterrupted)
    (warning,) = [event.data["message"] for event in events if event.type == "warning"]
    assert "step-00000018: the checkpoint cannot be read" in warning


def test_only_the_last_two_checkpoints_are_kept_and_leftovers_are_removed(tmp_path):
    (tmp_path / "work" / "unfinished-step-00000003").mkdir(parents=True)
    train(tmp_path, plan(checkpoint={"every_steps": 2}))
    kept = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert kept == ["metrics.jsonl", "step-00000010", "step-00000012"]


def test_checkpoints_are_also_saved_by_time(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, plan(checkpoint={"every_minutes": 1e-9}), data=Samples(stop=5))
    assert sorted(path.name for path in (tmp_path / "work").glob("step-*")) == ["step-00000004", "step-00000005"]


def test_checkpoint_holds_plain_safetensors_and_json(tmp_path):
    task, *_ = train(tmp_path, plan(ema_decay=0.5))
    folder = tmp_path / "work" / "step-00000012"
    assert set(load_file(folder / "model.safetensors")) == set(task.state_dict())
    averaged = load_file(folder / "state" / "ema.safetensors")
    assert torch.equal(averaged["net.0.weight"], task.net[0].weight)
    assert set(load_file(folder / "state" / "optimizer.safetensors")) == {
        f"{name}/{key}" for name, _ in task.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert json.loads((folder / "meta.json").read_text())["step"] == 12


def test_full_disk_is_an_os_error_and_earlier_checkpoints_stay_intact(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be cut off at the limit too, in silence
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # simulates a full disk: no file may grow beyond 300 bytes

    class Filling(Samples):
        def batch(self, step, samples):
            if step == 11:
                while not (tmp_path / "work/step-00000008").exists():  # a thread writes it meanwhile
                    time.sleep(0.01)
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


def test_tied_weights_are_saved_once_and_loaded_tied():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    first, second = Tied(), Tied()
    tensors = model_tensors(first)
    assert set(tensors) == {"embed.weight"}
    load_model(second, tensors, "here")
    assert torch.equal(second.head.weight, first.head.weight)
    assert second.head.weight is second.embed.weight


@pytest.mark.parametrize(
    ("saved", "line"),
    [
        ([torch.nn.Linear(3, 2)], "expected 1.weight, which it lacks"),
        ([torch.nn.Linear(3, 2), torch.nn.Linear(4, 1)], r"expected 1.weight of shape \[1, 2\], got \[1, 4\]"),
        ([torch.nn.Linear(3, 2), torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)], "got 2.weight, which this model lacks"),
    ],
)
def test_the_first_weight_that_differs_from_the_models_is_named(saved, line):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    with pytest.raises(UserError, match=f"^here: the state is of another model, or of another update of it: {line}$"):
        load_model(model, model_tensors(torch.nn.Sequential(*saved)), "here")
