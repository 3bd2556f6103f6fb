"""Runs as scheduler jobs, through submitit: `vfm run RECIPE --on slurm`. The job runs the same command.

A job is queued again when it reaches its time limit or is preempted: submitit's signal ends the command with a
checkpoint, and the next start resumes.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit

from vfm.base import UserError
from vfm.flow.execution.subprocesses import python_command

Cluster = Literal["slurm", "local"]
QUEUED_AGAIN = signal.SIGUSR2  # submitit's signal, which Slurm sends to every process of a job


@dataclass
class Command:
    """A command as a submitit job."""

    words: list[str]
    directory: str
    process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command in the first process of the job.

        Returns:
            The exit code, 0.

        Raises:
            RuntimeError: If the command failed.
        """
        if int(os.environ.get("SLURM_PROCID", "0")):  # the first machine starts the processes of the other machines
            return 0
        before = signal.signal(QUEUED_AGAIN, signal.SIG_IGN)  # inherited: only SIGTERM ends the command
        self.process = subprocess.Popen(self.words, cwd=self.directory)
        signal.signal(QUEUED_AGAIN, before)
        code = self.process.wait()
        if code:
            raise RuntimeError(f"exit code {code}: see the end of this job's error file")
        return code

    def checkpoint(self) -> Any:
        """End the command with a checkpoint, and submit it again."""
        if self.process:
            self.process.terminate()
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # the interrupted `wait` collects the status
        return submitit.helpers.DelayedSubmission(Command(self.words, self.directory))


@dataclass(frozen=True)
class Submitted:
    """A submitted job, with its number and the files that it writes to."""

    number: str
    output: Path
    errors: Path


def submit(arguments: Sequence[str], folder: Path, cluster: Cluster, settings: Mapping[str, Any]) -> Submitted:
    """Submit a `vfm` command.

    Args:
        arguments: Arguments of the command line.
        folder: Folder for submitit's files and the output, shared by all machines.
        cluster: slurm, or local, a background process on this machine.
        settings: Parameters of submitit, such as `nodes`, `gpus_per_node`, `timeout_min`, `slurm_partition`.

    Raises:
        UserError: If there is no such scheduler here, or no such parameter.
    """
    return submit_array([arguments], folder, cluster, settings)[0]


def submit_array(
    commands: Sequence[Sequence[str]], folder: Path, cluster: Cluster, settings: Mapping[str, Any]
) -> list[Submitted]:
    """Submit `vfm` commands, several as the tasks of an array.

    Args:
        commands: Words of each command.
        folder: As in `submit`.
        cluster: As in `submit`.
        settings: As in `submit`.

    Raises:
        UserError: If there is no such scheduler here, or no such parameter.
    """
    vfm = [*python_command(), "-m", "vfm"]
    try:
        executor = submitit.AutoExecutor(folder.resolve(), cluster=cluster)
        executor.update_parameters(**{"name": "vfm", "tasks_per_node": 1, **settings})
        with executor.batch():
            jobs = [executor.submit(Command([*vfm, *arguments], os.getcwd())) for arguments in commands]
    except (
        RuntimeError,
        NameError,
        TypeError,
        ValueError,
        AssertionError,
        submitit.core.utils.FailedJobError,
    ) as error:
        raise UserError(f"--on {cluster}: {' '.join(str(error).split())[:300]}") from None
    if cluster == "local":
        for job in jobs:
            job._cancel_at_deletion = False
    return [Submitted(job.job_id, job.paths.stdout, job.paths.stderr) for job in jobs]
