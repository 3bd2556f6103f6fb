"""A run as a job: mistakes before it is submitted, a checkpoint when it is interrupted, and the same command again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

submitit = pytest.importorskip("submitit")

from cli_world import run_here, toys  # noqa: E402
from train_toy import plan  # noqa: E402
from vfm.base import UserError  # noqa: E402
from vfm.eval.classify.stages import ZeroShot  # noqa: E402
from vfm.flow.execution.execution import runs_in_several, torchrun_command, torchrun_lines  # noqa: E402
from vfm.flow.execution.jobs import Command, submit  # noqa: E402

__all__ = ["toys"]
RESUMES = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
if (folder / "saved").exists():
    (folder / "finished").touch()
    sys.exit(0)
def save(*_):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(folder / "writing").write_text(str(os.getppid()))
(folder / "writing").rename(folder / "started")
time.sleep(120)
"""
RECIPE = "stages: [{kind: shapes.pool, name: pool, num_samples: 8}]\n"


def wait_for(file: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < until, f"{file} did not appear"
        time.sleep(0.1)


def test_an_interrupted_job_ends_its_command_with_sigterm_and_runs_it_again(tmp_path):
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(Command([sys.executable, "-c", RESUMES, str(tmp_path)], str(tmp_path)))
    wait_for(tmp_path / "started")
    os.kill(int((tmp_path / "started").read_text()), signal.SIGUSR2)  # as Slurm does some time before the limit
    wait_for(tmp_path / "finished")
    assert job.result() == 0


def test_a_command_that_fails_is_a_failed_job(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 2"):
        Command([sys.executable, "-c", "raise SystemExit(2)"], str(tmp_path))()


def test_only_the_first_process_of_a_job_on_several_machines_runs_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert Command(["false"], str(tmp_path))() == 0


def vfm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vfm", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )


def test_a_recipe_runs_as_a_local_job(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = vfm(tmp_path, "run", "recipe.yaml", "--on", "local", "--job", "timeout_min=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("submitted job ")
    wait_for(tmp_path / "store" / "runs" / "recipe" / "report.html")
    assert (tmp_path / "store" / "runs" / "recipe" / "artifacts" / "pool" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--on", "slurn"), "error: --on: expected slurm or local, got slurn"),
        (("--on", "local", "--job", "nodes"), "error: --job: expected KEY=VALUE, got nodes"),
        (("--job", "nodes=2"), "error: --job needs --on slurm or --on local"),
        (("--on", "local", "--job", "no_such_key=2"), "error: --on local: "),
        (("--on", "local", "--job", "timeout_min={a"), "error: --job: expected KEY=VALUE, the value in YAML, got"),
        (("--on", "slurm"), "error: --on slurm: "),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_submitted(tmp_path, arguments, message):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = vfm(tmp_path, "run", "recipe.yaml", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message), done.stderr
    assert len(done.stderr.splitlines()) == 1


class Stage:
    class runtime:  # noqa: N801
        processes = 8


class Step:
    stage = Stage

    class slot:  # noqa: N801
        name = "clip.train-3f2a91c0"


def test_torchrun_spans_the_machines_of_a_slurm_job(tmp_path, monkeypatch):
    alone = torchrun_command(Step, tmp_path)
    assert alone[:3] == ["env", "PYTHONSAFEPATH=1", sys.executable]
    assert alone[3:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8", "-m", "vfm", "step",
                         str(tmp_path), "--events", "json"]  # fmt: skip
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    in_job = torchrun_command(Step, tmp_path)  # a job of one machine
    assert in_job == ["env", "--ignore-signal=USR1", "--ignore-signal=USR2", *alone[1:]]
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    spread = " ".join(torchrun_command(Step, tmp_path))
    assert spread.startswith("srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --overlap env --ignore-signal=USR1")
    assert "--nnodes=4 --rdzv-id=4711-clip.train-3f2a91c0 --rdzv-backend=c10d --rdzv-endpoint=" in spread
    assert spread.endswith(f" --nproc-per-node=8 -m vfm step {tmp_path} --events json")
    ports = {re.search(r"endpoint=\S+:(\d+) ", " ".join(torchrun_command(Step, tmp_path)))[1] for _ in range(3)}
    assert len(ports) > 1  # steps that run at once in a job do not meet


def test_an_evaluation_in_one_process_stays_on_one_machine(monkeypatch):
    def evaluation(processes: int) -> ZeroShot:
        return ZeroShot(name="scores", data="photos", runtime={"processes": processes})

    assert not runs_in_several(plan())
    assert [runs_in_several(evaluation(number)) for number in (1, 2)] == [False, True]
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    assert runs_in_several(plan())
    assert [runs_in_several(evaluation(number)) for number in (1, 2)] == [False, True]


def test_printed_commands_can_be_pasted(tmp_path):
    one, several = torchrun_lines(Step, tmp_path / "a folder")
    assert one.startswith(several.split(" --nnodes")[0])
    assert one.startswith(f"env PYTHONSAFEPATH=1 {sys.executable} -m torch.distributed.run")
    assert one.endswith(f"--standalone --nproc-per-node=8 -m vfm step '{tmp_path}/a folder'")
    assert "--nnodes=MACHINES '--rdzv-id=a folder' --rdzv-backend=c10d" in several


def test_unknown_schedulers_are_refused_by_the_library_too(tmp_path):
    with pytest.raises(UserError, match="--on local: "):
        submit(["--version"], tmp_path, "local", {"nodes": 2, "gpus_per_node": "many"})


SBATCH = """#!/bin/sh
echo "$@" >> "$FAKE_SLURM/calls"
cp "$1" "$FAKE_SLURM/$(wc -l < "$FAKE_SLURM/calls").sh"
echo "Submitted batch job $((100 + $(wc -l < "$FAKE_SLURM/calls")))"
"""
SUMS = """\
stages:
  - {kind: toy.draw, name: a}
  - {kind: toy.draw, name: b, seed: 5}
  - {kind: toy.add, name: sum, inputs: [a, b]}
  - {kind: toy.add, name: other, inputs: [a]}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder in which commands named as Slurm's keep the scripts that are submitted, and number them from 101."""
    for name, text in {"sbatch": SBATCH, "srun": "#!/bin/sh\n"}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    return tmp_path


def test_each_stage_is_a_job_that_starts_after_those_of_its_inputs(toys, slurm, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{toys.parent / 'site'}:{Path(__file__).parent}")
    Path("r.yaml").write_text(SUMS)
    assert run_here("run", "r.yaml", "--until", "b").code == 0  # which needs no job then
    done = vfm(toys, "run", "r.yaml", "--on", "slurm", "--job-per-stage", "--job", "timeout_min=9", "--job=mem_gb=2")
    assert done.returncode == 0, done.stderr
    names = [re.search(r"for (?:the )?(\w+);", line)[1] for line in done.stdout.splitlines()]
    assert names == ["a", "sum", "other", "report"]
    scripts = [(slurm / f"{number}.sh").read_text() for number in range(1, 5)]
    after = [re.findall(r"--dependency=(\S+)", script) for script in scripts]
    assert after == [[], ["afterok:101"], ["afterok:101"], ["afterok:101:102:103"]]
    assert ["#SBATCH --kill-on-invalid-dep=yes" in script for script in scripts] == [False, True, True, True]
    assert all("--time=9\n" in script and "--mem=2GB" in script for script in scripts)
    pickles = sorted((toys / "store/jobs").glob("*_submitted.pkl"))
    commands = [submitit.core.utils.DelayedSubmission.load(file).function.words for file in pickles]
    words = [command[command.index("vfm") + 1 :] for command in commands]
    assert [one[-2:] for one in words] == [
        ["--until", "a"],
        ["--until", "sum"],
        ["--until", "other"],
        ["run", "r.yaml"],
    ]
    for one in words:  # what Slurm would start, in an order that it could choose
        assert run_here(*one).code == 0
    assert Path("store/runs/r/report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--on", "local", "--job-per-stage"),
            "error: --job-per-stage: expected --on slurm, which starts jobs one after",
        ),
        (("--job-per-stage",), "error: --job-per-stage: expected --on slurm, which starts jobs one after"),
        (("--on", "slurm", "--job-per-stage", "--fresh"), "error: --job-per-stage: expected no --fresh, with which"),
    ],
)
def test_a_job_for_each_stage_needs_slurm(tmp_path, words, message):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = vfm(tmp_path, "run", "recipe.yaml", *words)
    assert (done.returncode, done.stderr[: len(message)]) == (2, message)


def test_until_runs_a_stage_with_what_it_needs_and_nothing_else(toys):
    assert run_here("run", "r.yaml", "--until", "a").code == 0
    assert [path.name.partition("-")[0] for path in Path("store").glob("toy.*")] == ["toy.draw"]
    done = run_here("run", "r.yaml", "--until", "z")
    assert (done.code, done.errors) == (2, ["error: no stage is named 'z'; known: a, b, sum"])
    assert run_here("run", "r.yaml", "--until", "smu").errors == ["error: no stage is named 'smu'; did you mean 'sum'?"]
    Path("r.yaml").write_text(f"seeds: [3, 4]\n{Path('r.yaml').read_text()}")
    assert run_here("run", "r.yaml", "--until", "z").errors == ["error: no stage is named 'z'; known: a, b, sum"]
    assert run_here("run", "r.yaml", "--until", "a@4", "--store", "one").code == 0
    assert len(list(Path("one").glob("toy.*"))) == 1
    assert run_here("run", "r.yaml", "--until", "a", "--store", "both").code == 0
    assert [path.name.partition("-")[0] for path in Path("both").glob("toy.*")] == ["toy.draw"] * 2
    assert run_here("runs").out.split().count("finished") == 0
