"""A job for each stage: arrays for seeds, sizes from settings and costs, and scripts that a stand-in for Slurm runs."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

pytest.importorskip("submitit")

import fake_slurm
import toy_plugin
from cli_world import Outcome, run_here, toys
from train_toy import plan
from vfm.base import UserError
from vfm.eval.classify.stages import ZeroShot
from vfm.flow.execution.job_sizes import check_scopes, chosen_for, size_of
from vfm.interfaces import Cost, PeakMemory

__all__ = ["toys"]
SEEDS = """\
seeds: [3, 4]
stages:
  - {kind: toy.draw, name: a}
  - {kind: toy.draw, name: b, count: 5}
  - {kind: toy.add, name: sum, inputs: [a, b]}
  - {kind: toy.add, name: all, inputs: [sum]}
"""


@pytest.fixture
def slurm(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which commands named as Slurm's keep what is submitted, and run it."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{fake_slurm.install(folder)}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{toys.parent / 'site'}:{Path(__file__).parent}")
    return folder


def submitted(monkeypatch: pytest.MonkeyPatch, *words: str) -> Outcome:
    whole = ["run", "r.yaml", "--on", "slurm", "--job-per-stage", *words]
    monkeypatch.setattr("sys.argv", ["vfm", *whole])
    return run_here(*whole)


def ends(folder: Path, *tasks: str) -> list[str]:
    """Wait for tasks, and list their states."""
    until = time.monotonic() + 300
    while not all((folder / "state" / task).exists() for task in tasks):
        assert time.monotonic() < until, sorted(path.name for path in (folder / "state").iterdir())
        time.sleep(0.1)
    return [(folder / "state" / task).read_text() for task in tasks]


def conditions(folder: Path, numbers: range) -> list[list[str]]:
    return [re.findall(r"--(?:dependency|array)=(\S+)", (folder / f"{number}.sh").read_text()) for number in numbers]


def test_seeds_are_arrays_whose_tasks_follow_one_another_and_make_what_one_run_makes(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("r.yaml").write_text(SEEDS)
    done = submitted(monkeypatch)
    assert done.code == 0, done
    assert [line.partition(";")[0] for line in done.out.splitlines()] == [
        "submitted job 101 for a, 2 seeds",
        "submitted job 102 for b, 2 seeds",
        "submitted job 103 for sum, 2 seeds",
        "submitted job 104 for all, 2 seeds",
        "submitted job 105 for the report",
    ]
    after = conditions(slurm, range(101, 106))
    assert after == [
        ["0-1%2"],
        ["0-1%2"],
        ["0-1%2", "aftercorr:101:102"],
        ["0-1%2", "aftercorr:103"],
        ["afterok:101:102:103:104"],
    ]
    assert ends(slurm, "101_0", "101_1", "104_0", "104_1", "105") == ["COMPLETED"] * 5
    assert Path("store/runs/r/report.html").is_file()
    assert run_here("run", "r.yaml", "--store", "other").code == 0
    for name in ("sum@3", "sum@4", "all@4"):
        jobs, alone = (toy_plugin.Numbers.load(Path(store, "runs/r/artifacts", name)) for store in ("store", "other"))
        assert jobs.values == alone.values
    manifests = list(Path("store").glob("toy.*/manifest.json"))
    assert len(manifests) == 8


def test_a_seed_that_exists_is_not_submitted_and_others_wait_for_the_whole_array(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("r.yaml").write_text(SEEDS)
    assert run_here("run", "r.yaml", "--until", "a@3").code == 0
    assert "submitted job 101 for a;" in submitted(monkeypatch).out
    after = conditions(slurm, range(101, 106))
    assert after[:3] == [[], ["0-1%2"], ["0-1%2", "afterok:101,aftercorr:102"]]
    assert ends(slurm, "105") == ["COMPLETED"]


def test_what_needs_a_failed_stage_is_cancelled_and_submitted_again(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = SEEDS + "  - {kind: toy.fail, name: bad, number: a, how: user}\n"
    Path("r.yaml").write_text(failing + "  - {kind: toy.add, name: more, inputs: [bad]}\n")
    assert submitted(monkeypatch).code == 0
    names = ("104_0", "104_1", "105_0", "105_1", "106_0", "107")
    assert ends(slurm, *names) == ["COMPLETED"] * 2 + ["FAILED"] * 2 + ["CANCELLED"] * 2
    Path("r.yaml").write_text(SEEDS)
    assert [line.partition(";")[0] for line in submitted(monkeypatch).out.splitlines()] == [
        "submitted job 108 for the report"
    ]
    assert ends(slurm, "108") == ["COMPLETED"]


def test_sizes_follow_settings_and_costs() -> None:
    training = plan(runtime={"device": "auto", "processes": 8, "workers": 4, "threads": 2})
    memory = PeakMemory(weights=20 << 30, activations=11 << 30)
    hour = 8 * 312e12 * 0.4 * 3600.0
    size = size_of(training, Cost(memory=memory, flops=hour))
    assert size == {"nodes": 1, "timeout_min": 210, "gpus_per_node": 8, "cpus_per_task": 48, "mem_gb": 8 * 39}
    assert "gpus_per_node" not in size_of(plan(runtime={"device": "cpu"}), None)
    assert "gpus_per_node" not in size_of(toy_plugin.Draw(name="a"), None)
    assert size_of(toy_plugin.Draw(name="a"), None)["timeout_min"] == 240
    assert size_of(ZeroShot(name="scores", data="photos"), None)["gpus_per_node"] == 1


def test_machines_and_gpus_are_only_for_stages_that_use_them() -> None:
    training = plan(name="clip@3", runtime={"device": "auto", "processes": 8})
    chosen = {"nodes": 4, "gpus_per_node": 8, "timeout_min": 9, "clip.timeout_min": 99, "cpu.slurm_partition": "small"}
    assert chosen_for(training, chosen) == {"nodes": 4, "gpus_per_node": 8, "timeout_min": 99}
    assert chosen_for(toy_plugin.Draw(name="a"), chosen) == {"timeout_min": 9, "slurm_partition": "small"}
    assert chosen_for(ZeroShot(name="scores", data="photos"), chosen) == {"timeout_min": 9}
    check_scopes(chosen, ["clip@3", "a"])
    with pytest.raises(
        UserError, match=r"^--job clp.nodes: expected cpu, gpu or a stage, got clp; did you mean 'clip'"
    ):
        check_scopes({"clp.nodes": 4}, ["clip@3", "a"])
