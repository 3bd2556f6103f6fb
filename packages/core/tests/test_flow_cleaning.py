"""`vfm clean`: what runs that go on, that are kept and that failed need is never removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_world import RECIPE, Outcome, run_here, toys
from vfm.flow.plan.store import Slot, Store
from vfm.flow.records.runs import kept_runs

__all__ = ["toys"]
STORE = Store(Path("store"))
FAILING = RECIPE + "  - {kind: toy.fail, name: bad, number: sum, how: user}\n"


def ran(*words: str | Path) -> Outcome:
    done = run_here("run", *words)
    assert done.code == 0, done
    return done


def folders() -> list[str]:
    return [run.directory.name for run in kept_runs(STORE)]


def artifact(run: str, stage: str) -> Path:
    return Path("store") / (STORE.run_directory(run) / "artifacts" / stage).readlink().name


def two_runs_of_a_base() -> Path:
    """Run a recipe twice, and return an artifact of the first run only."""
    ran("r.yaml")
    ran("r.yaml", "--set", "b.seed=6")
    return artifact("r@1", "b")


def test_a_run_that_goes_on_is_kept_with_what_it_reads(toys: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{toys.parent / 'site'}:{Path(__file__).parent}"}
    gate = ("--set", f"sum.gate={toys / 'gate'}")  # however slow this machine is, the run goes on until then
    slow = [sys.executable, "-m", "vfm", "run", "r.yaml", *gate]
    with subprocess.Popen(slow, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as first:
        while first.poll() is None and not list(toys.glob("store/.toy.add-*.work/partial.txt")):
            time.sleep(0.02)
        ran("r.yaml", "--set", "b.seed=6")
        said = run_here("clean", "--keep-runs", 1).out
        (toys / "gate").touch()
        assert "nothing to remove" in said
        assert first.communicate(timeout=100)[0]
    assert first.returncode == 0
    assert ran("r.yaml", *gate).out.count("cached") == 3
    ran("r.yaml", "--set", "b.seed=6")
    assert "removed run r@1" in run_here("clean", "--keep-runs", 1).out


def test_a_run_whose_prepared_stage_is_running_is_kept(toys: Path) -> None:
    run_here("run", "r.yaml", "--prepare", "sum")
    ran("r.yaml", "--set", "b.seed=6")
    with Slot(Path("store"), artifact("r@1", "sum").name).lock(lambda message: None):  # as `vfm step` does
        assert "nothing to remove" in run_here("clean", "--keep-runs", 1).out
    assert "removed run r@1" in run_here("clean", "--keep-runs", 1).out


@pytest.mark.parametrize("form", ["path", "absolute path", "named folder", "through the run"])
def test_an_input_that_a_kept_run_reads_by_its_path_is_kept(form: str, toys: Path) -> None:
    read = two_runs_of_a_base()
    address = {
        "path": str(read),
        "absolute path": str(read.absolute()),
        "named folder": f"$there/{read.name}",
        "through the run": "store/runs/r@1/artifacts/b",
    }[form]
    recipe = f"paths: {{there: store}}\nstages:\n  - {{kind: toy.add, name: more, inputs: [{address}]}}\n"
    Path("other.yaml").write_text(recipe)
    ran("other.yaml")
    said = run_here("clean", "--keep-runs", 1).out
    assert ("removed run r@1" in said) == (form != "through the run")
    assert read.is_dir()
    assert ran("other.yaml").out.count("cached") == 1
    shutil.rmtree("store/runs/other@1")
    assert f"removed {read.name}" in run_here("clean", "--keep-runs", 1).out


def test_an_input_of_a_run_that_failed_is_kept(toys: Path) -> None:
    read = two_runs_of_a_base()
    Path("other.yaml").write_text(f"stages:\n  - {{kind: toy.fail, name: bad, number: {read}, how: user}}\n")
    assert run_here("run", "other.yaml").code == 2
    run_here("clean", "--keep-runs", 1)
    assert read.is_dir()


def test_partial_results_that_a_kept_run_reads_are_kept(toys: Path) -> None:
    work = Path(run_here("run", "r.yaml", "--prepare", "sum").out.split()[-1])
    checkpoint = work / "partial.txt"
    checkpoint.write_text("1 0")
    ran("r.yaml", "--set", "b.seed=6")
    Path("other.yaml").write_text(f"stages:\n  - {{kind: toy.read, name: words, path: {checkpoint}}}\n")
    ran("other.yaml")
    assert run_here("clean", "--keep-runs", 1).out.splitlines()[0] == "removed run r@1"
    assert checkpoint.is_file()
    assert ran("other.yaml").out.count("cached") == 1


def test_what_a_kept_input_refers_to_is_kept(toys: Path) -> None:
    pool = two_runs_of_a_base()
    Path("subset.yaml").write_text(f"stages:\n  - {{kind: toy.address, name: subset, path: ../{pool.name}}}\n")
    ran("subset.yaml")
    subset = artifact("subset@1", "subset")
    Path("other.yaml").write_text(f"stages:\n  - {{kind: toy.read, name: words, path: {subset}/artifact.json}}\n")
    ran("other.yaml")
    shutil.rmtree("store/runs/subset@1")
    run_here("clean", "--keep-runs", 1)
    assert subset.is_dir()
    assert pool.is_dir()


def test_runs_that_failed_push_out_no_result(toys: Path) -> None:
    two_runs_of_a_base()
    Path("r.yaml").write_text(FAILING)
    for seed in (7, 8):
        assert run_here("run", "r.yaml", "--set", f"b.seed={seed}").code == 2
    assert folders() == ["r@1", "r@2", "r@3", "r@4"]
    assert "nothing to remove" in run_here("clean", "--keep-runs", 2).out
    run_here("clean", "--keep-runs", 1)
    assert folders() == ["r@2", "r@3", "r@4"]
    assert artifact("r@2", "sum").is_dir()
    Path("r.yaml").write_text(RECIPE)
    ran("r.yaml", "--set", "b.seed=9")
    run_here("clean", "--keep-runs", 1)
    assert folders() == ["r@5"]


def test_checkpoints_of_an_unfinished_run_that_another_followed_are_named_and_removed_on_request(toys: Path) -> None:
    work = Path(run_here("run", "r.yaml", "--prepare", "sum").out.split()[-1])  # as after a kill
    (work / "partial.txt").write_bytes(bytes(3_000_000))
    assert run_here("clean", "--partial").out == "nothing to remove: every artifact belongs to a run\n"  # the last run
    ran("r.yaml", "--set", "sum.inputs=[a]")
    nothing, hint = run_here("clean").out.splitlines()
    assert nothing == "nothing to remove: every artifact belongs to a run"
    assert hint == "unfinished runs that others followed have 3.0 MB of partial results: remove with --partial"
    with Slot(Path("store"), work.name[1:].removesuffix(".work")).lock(lambda message: None):
        assert "MB" not in run_here("clean", "--partial").out  # a process works on it
    assert "would remove toy.add-" in run_here("clean", "--partial", "--dry-run").out
    assert work.is_dir()
    before = {path.name for path in Path("store").glob("toy.*")}
    assert "removed toy.add-" in run_here("clean", "--partial").out
    assert not work.exists()
    assert {path.name for path in Path("store").glob("toy.*")} == before
    assert ran("r.yaml").out.count("cached") == 2  # the first run goes on, and makes the stage anew


def test_checkpoints_that_the_last_run_needs_too_are_kept(toys: Path) -> None:
    work = Path(run_here("run", "r.yaml", "--prepare", "sum").out.split()[-1])
    Path("r.yaml").write_text(RECIPE + "  - {kind: toy.add, name: more, inputs: [sum]}\n")
    run_here("run", "r.yaml", "--prepare", "sum")
    assert "nothing to remove" in run_here("clean", "--partial").out
    assert work.is_dir()
