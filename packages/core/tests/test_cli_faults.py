"""Faults of the machine: a full disk, two runs at once, a kill at a bad moment. No finished artifact is lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfm
from cli_world import install, run_here, toys
from vfm.flow.plan.store import Slot, Store
from vfm.storage.locks import is_lock_of

__all__ = ["toys"]
SHAPES = """\
stages:
  - {kind: shapes.classes, name: val, num_samples: 48}
  - {kind: shapes.pool, name: pool, num_samples: 1500, samples_per_shard: 100}
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk_is_one_line_loses_nothing_and_the_run_goes_on_when_there_is_space(small_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(SHAPES)
    full = run_here("run", "r.yaml", "--store", small_disk)
    assert full.code == 2
    (line,) = full.errors
    assert re.search(r"disk/\.shapes\.pool-[0-9a-f]{8}\.part.*: no space", line)
    assert "no space left on the disk; finished artifacts are intact: free some space and run again" in line
    finished = {path.name for path in Store(small_disk).artifacts()}
    assert len(finished) == 1
    assert vfm.Artifact.load(small_disk / "runs/r/artifacts/val").num_samples == 48
    again = run_here("run", "r.yaml", "--store", small_disk)
    assert (again.code, len(again.errors)) == (2, 1)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    done = run_here("run", "r.yaml", "--store", small_disk)
    assert done.code == 0
    assert next(line for line in done.out.splitlines() if "val" in line).endswith("cached")
    straight = run_here("run", "r.yaml", "--store", "other")
    assert straight.code == 0
    names = [path.name for path in Path("other/runs/r/artifacts/pool").resolve().iterdir()]
    for name in (name for name in names if name.endswith(".tar")):
        there = small_disk / "runs/r/artifacts/pool" / name
        assert there.read_bytes() == (Path("other/runs/r/artifacts/pool") / name).read_bytes()


def test_file_that_may_not_grow_is_one_line(toys):
    Path("r.yaml").write_text(SHAPES)
    command = (
        f"ulimit -f 64; exec {sys.executable} -B -m vfm run r.yaml"  # -B: bytecode would be cut off too, in silence
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.search(r"store/\.shapes\.\w+-[0-9a-f]{8}\.part.*: File too large$", line)


def start(here: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(here / "site")}
    return subprocess.Popen(
        [sys.executable, "-m", "vfm", "run", "r.yaml", *words],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def site(toys: Path) -> Path:
    install(toys / "site", "toys", "toy_plugin")
    shutil.copy(Path(__file__).parent / "toy_plugin.py", toys / "site")
    return toys


def test_three_runs_at_once_make_everything_once_and_all_end_well(site):
    runs = [start(site, "--set", "sum.pause=0.2") for _ in range(3)]
    outputs = [run.communicate(timeout=1800) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], outputs
    made = [line for out, _ in outputs for line in out.splitlines() if line.startswith("✓ sum")]
    assert sum("cached" in line for line in made) == 2
    assert any("waiting for toy." in out and "held by process" in out for out, _ in outputs)
    assert not [path.name for path in (site / "store").iterdir() if path.suffix in {".part", ".work"}]


def test_fresh_run_beside_another_one_waits_for_it(site):
    gate = ("--set", f"sum.gate={site / 'gate'}")  # until then the first run holds the lock, however slow it is
    first = start(site, *gate)
    for line in first.stdout or ():
        if line.startswith("  sum 1/6"):
            break
    second = start(site, *gate, "--fresh")
    waited = any("waiting for toy.add" in line for line in second.stdout or ())
    (site / "gate").touch()
    _, err = second.communicate(timeout=1800)
    first.communicate(timeout=1800)
    assert (waited, first.returncode, second.returncode) == (True, 0, 0), err


def test_step_of_a_scheduler_waits_for_whoever_makes_the_same(site):
    work = Path(run_here("run", "r.yaml", "--prepare", "sum").out.split()[-1])
    slot = Slot(site / "store", work.name[1:].removesuffix(".work"))
    environment = {**os.environ, "PYTHONPATH": str(site / "site"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "vfm", "step", str(work)]
    with slot.lock(lambda message: None):
        step = subprocess.Popen(command, cwd=site, env=environment, stdout=subprocess.PIPE, text=True)
        assert f"held by process {os.getpid()}" in step.stdout.readline()
        assert not slot.artifact.exists()
    step.communicate(timeout=1800)
    assert step.returncode == 0
    assert slot.artifact.exists()


def test_lock_that_was_cleaned_away_does_not_let_two_in(tmp_path):
    slot = Slot(tmp_path, "toy.draw-00000000")
    with slot.lock(lambda message: None):
        slot.lock_file.unlink()
        with slot.lock(lambda message: None) as inner:  # a file of its own: whoever waits for the old one sees that
            assert is_lock_of(inner, slot.lock_file)
    slot.begin()
    slot.discard()
    assert list(tmp_path.iterdir()) == []


def test_kill_between_publishing_and_tidying_up_leaves_nothing_behind(toys):
    run_here("run", "r.yaml")
    artifact = Path("store/runs/r/artifacts/sum").resolve()
    work = artifact.parent / f".{artifact.name}.work"
    work.mkdir()
    (work / "step.json").write_text("{}")
    assert run_here("run", "r.yaml").out.count("cached") == 3
    assert not work.exists()


def test_metrics_and_warnings_before_a_crash_are_in_the_manifest(tmp_path):
    from vfm.flow.records.manifest import EventNotes
    from vfm.interfaces import Event

    notes = EventNotes(tmp_path / "notes.json")
    notes.add(Event("metrics", "s", {"values": {"train/loss": 0.1 + 0.2}}))
    notes.add(Event("warning", "s", {"message": "odd"}))
    after = EventNotes(tmp_path / "notes.json")
    after.add(Event("warning", "s", {"message": "odd"}))
    assert (after.numbers, after.warnings) == ({"train/loss": 0.1 + 0.2}, ["odd"])
