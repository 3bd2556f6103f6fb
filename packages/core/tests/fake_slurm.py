"""Commands named as Slurm's that run submitted scripts on this machine: arrays, dependencies and their failures.

state/101, state/102_0    COMPLETED, FAILED or CANCELLED, once a job or a task of an array has ended
101.sh                    the script
calls                     the submissions, one a line
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ.get("FAKE_SLURM", "."))
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@" > "$FAKE_SLURM/$SLURM_JOB_ID.out" 2>&1
"""


def install(folder: Path) -> Path:
    """Write the commands into a folder for PATH."""
    binaries = folder / "bin"
    binaries.mkdir()
    (folder / "state").mkdir()
    sbatch = f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n'
    for name, text in {"sbatch": sbatch, "srun": SRUN, "scontrol": "#!/bin/sh\n"}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    return binaries


def tasks_of(number: str) -> list[str]:
    """List the tasks of a job, which is itself one if it is no array."""
    array = re.search(r"--array=0-(\d+)", (FOLDER / f"{number}.sh").read_text())
    return [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [number]


def state_of(task: str) -> str:
    file = FOLDER / "state" / task
    return file.read_text() if file.exists() else ""


def end_as(task: str, state: str) -> None:
    part = FOLDER / "state" / f".{task}"
    part.write_text(state)
    part.rename(FOLDER / "state" / task)


def needed_by(number: str, task: str) -> list[str]:
    """List the tasks that must succeed before a task of a job."""
    needed: list[str] = []
    for condition in re.findall(r"--dependency=(\S+)", (FOLDER / f"{number}.sh").read_text()):
        for part in condition.split(","):
            kind, *others = part.split(":")
            for other in others:
                needed += tasks_of(other) if kind == "afterok" else [f"{other}_{task.partition('_')[2]}"]
    return needed


def run(number: str, task: str) -> None:
    """Wait for what a task needs, and run it."""
    needed = needed_by(number, task)
    while not all(state_of(other) for other in needed):
        time.sleep(0.05)
    if any(state_of(other) != "COMPLETED" for other in needed):
        end_as(task, "CANCELLED")
        return
    variables = {
        "SLURM_JOB_ID": task,
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        **dict.fromkeys(("SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID"), "0"),
    }
    if "_" in task:
        variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task.partition("_")[2]}
    code = subprocess.run(["bash", FOLDER / f"{number}.sh"], env={**os.environ, **variables}).returncode
    end_as(task, "FAILED" if code else "COMPLETED")


def submit(script: Path) -> None:
    """Keep a script, start its tasks in the background, and print its number."""
    with (FOLDER / "calls").open("a+") as calls:
        calls.seek(0)
        number = str(101 + len(calls.readlines()))
        calls.write(f"{number}\n")
    (FOLDER / f"{number}.sh").write_text(script.read_text())
    for task in tasks_of(number):
        words = [sys.executable, __file__, "run", number, task]
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(words, start_new_session=True, **silent)  # type: ignore[call-overload]
    print(f"Submitted batch job {number}")


if __name__ == "__main__":
    run(*sys.argv[2:]) if sys.argv[1] == "run" else submit(Path(sys.argv[1]))
