"""Trainings that run at once: the same bits as one after another, after Ctrl-C, SIGTERM and SIGKILL too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from test_kill_and_resume import contents, finish, output
from vfm.storage.locks import is_locked

RECIPE = """\
seeds: [0, 1]
runtime: {threads: 1, device: cpu}
stages:
  - {kind: shapes.pool, name: pool, num_samples: 120, world: &world {image_size: 32}, seed: 3}
  - {kind: shapes.classes, name: val, num_samples: 48, world: *world, seed: 4}
  - kind: clip.train
    name: clip
    model: ViT-Pico-8-32
    data: pool
    steps: 300
    global_batch_size: 16
    log_every: 1
    checkpoint: {every_steps: 1000}
  - {kind: eval.zero_shot, name: scores, models: [clip], data: val}
"""
TRAININGS = {"clip@0", "clip@1"}


def start(folder: Path, store: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vfm", "run", "r.yaml", "--store", store, *words],
        cwd=folder,
        # Threads are those of the recipe, with one job too: nothing else may decide them.
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "two/runs/r/events.jsonl"
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""  # the last line may be under way
    return [json.loads(line) for line in whole.splitlines()]


def newest(folder: Path) -> list[int]:
    """The last checkpoint's step of each training that goes on."""
    works = sorted((folder / "two").glob(".clip.train-*.work"))
    return [max((int(path.name.removeprefix("step-")) for path in work.glob("step-*")), default=0) for work in works]


@pytest.mark.slow
def test_trainings_at_once_are_the_same_bits_whatever_signals_come(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    finish(start(tmp_path, "one"))
    saved = [0, 0]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        known = len(events(tmp_path))
        process = start(tmp_path, "two", "--jobs", "2")
        while {one["stage"] for one in events(tmp_path)[known:] if one["type"] == "metrics"} < TRAININGS:
            assert process.poll() is None, output(process)
            time.sleep(0.02)
        process.send_signal(number)
        out, err = output(process)
        assert process.returncode == code, out[-2000:] + err[-2000:]
        while any(is_locked(lock) for lock in (tmp_path / "two").glob(".*.lock")):
            time.sleep(0.02)
        before, saved = saved, newest(tmp_path)
        assert all(step > earlier for step, earlier in zip(saved, before, strict=True)), (number, before, saved)
    finish(start(tmp_path, "two", "--jobs", "2"))
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []
    manifests = [content for name, content in two.items() if name.endswith("manifest.json")]
    assert {manifest["runtime"]["threads"] for manifest in manifests} == {1}
    starts = [one for one in events(tmp_path) if one["type"] == "stage_started" and one["stage"] in TRAININGS]
    assert [one["status"] for one in starts].count("resume") == 6
