"""Two processes on gloo do what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_toy
from train_toy import Plan, plan, train
from vfm.train import seed_everything


def torchrun(mode: str, folder: Path, settings: Plan, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, train_toy.__file__, mode, str(folder), settings.model_dump_json()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_two_processes_give_the_losses_of_one(tmp_path, micro_batch_size):
    settings = plan(log_every=1, micro_batch_size=micro_batch_size, grad_clip_norm=0.5, ema_decay=0.9)
    done = torchrun("plain", tmp_path / "two", settings)
    assert done.returncode == 0, done.stderr
    train(tmp_path / "one", settings)
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one.pop("split") == two.pop("split") == "train"
        assert two == pytest.approx(one, rel=1e-5, abs=1e-6)
    a, b = (load_file(tmp_path / n / "work" / "step-00000012" / "model.safetensors") for n in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_a_nan_in_the_second_process_stops_both_and_is_named(tmp_path):
    done = torchrun("nan", tmp_path, plan())
    assert done.returncode != 0
    assert "the loss is not finite at step 8" in done.stderr
    assert "samples: step7-sample4, step7-sample5, step7-sample6, step7-sample7" in done.stderr


def test_draws_differ_by_step_micro_batch_and_rank_and_repeat():
    def draw(*where):
        seed_everything(*where)
        return float(torch.rand(()))

    draws = {where: draw(*where) for where in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]}
    assert len(set(draws.values())) == 5
    assert all(draw(*where) == value for where, value in draws.items())
