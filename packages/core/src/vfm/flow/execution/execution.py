"""Execution of a step: in this process, in a subprocess, or under torchrun if the stage needs several processes.

The work folder of a step holds `step.json` with everything that `vfm step DIR` needs, so a scheduler can start it on
other machines.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

from vfm.base import UserError, load_function
from vfm.flow.execution.job_sizes import spans_machines
from vfm.flow.execution.subprocesses import (
    Job,
    Send,
    Start,
    python_command,
    run_subprocess,
    signals_forwarded,
    start_subprocess,
)
from vfm.flow.plan.plan import Step, check_identity
from vfm.flow.plan.roots import ROOTS
from vfm.flow.plan.store import STEP_FILE, Slot
from vfm.flow.records.manifest import EventNotes, build_manifest
from vfm.interfaces import MANIFEST_FILE, Context, Event, LeftToFirst, Stage, unknown_kind
from vfm.storage.folder_checks import check_together
from vfm.storage.integrity import read_sealed, seal
from vfm.storage.publishing import naming_full_disks, write_file
from vfm.storage.store_files import reading
from vfm.storage.whole_hashes import hashed_meanwhile

NOTES_FILE = "notes.json"


def write_step(step: Step) -> Path:
    """Prepare the work folder of a step."""
    _check_work(step)
    step.slot.begin()
    record = {
        "given": step.stage.given_settings(),  # to build the stage again
        "stage": step.stage.model_dump(mode="json"),  # for the comparison by `vfm plan`
        "identity": step.identity,
        "inputs": step.inputs,
        ROOTS: step.roots(),
        "folders": {ref: str(path) for ref, path in step.folders.items()},
        "fingerprints": step.fingerprints,
        "slot": {"root": str(step.slot.root.resolve()), "name": step.slot.name},
    }
    write_file(step.slot.work / STEP_FILE, seal(record))
    return step.slot.work


def _check_work(step: Step) -> None:
    """Check that a work folder is not another stage's, since its name only has eight digits of the identity.

    Partial results that were computed from other inputs are removed.

    Raises:
        UserError: If it is another stage's.
    """
    try:
        record = read_sealed(step.slot.work / STEP_FILE, "identity")
    except UserError:  # missing or damaged: it is written again
        return
    check_identity(step, str(record["identity"]), step.slot.work)
    if record.get(ROOTS, step.roots()) != step.roots():
        shutil.rmtree(step.slot.work)


def read_step(work: Path, known: Mapping[str, type[Stage]]) -> Step:
    """Read the step that a work folder was prepared for.

    Args:
        work: The folder.
        known: Stage types by kind.

    Raises:
        UserError: If the folder holds no prepared step, or its stage kind is not installed.
    """
    file = work / STEP_FILE
    if not file.is_file():
        raise UserError(f"{work}: not a prepared step ({STEP_FILE} is missing)")
    record = read_sealed(file, "given", "identity", "inputs", "folders", "fingerprints", "slot")
    with reading(file, "a prepared step"):
        kind = record["given"]["kind"]
        if kind not in known:
            raise UserError(f"{work}: {unknown_kind(kind, known)}")
        return Step(
            stage=known[kind].model_validate(record["given"], context=known),
            identity=str(record["identity"]),
            inputs=dict(record["inputs"]),
            folders={ref: Path(path) for ref, path in record["folders"].items()},
            fingerprints=dict(record["fingerprints"]),
            slot=Slot(Path(record["slot"]["root"]), record["slot"]["name"]),
        )


def execute(step: Step, send: Send, lock_descriptor: int, job: Job | None = None) -> None:
    """Run a step whose lock is held, and publish its artifact.

    Args:
        step: The step.
        send: Receives the events of the stage.
        lock_descriptor: File descriptor of the lock. Subprocesses inherit it.
        job: Run in a subprocess, concurrently with other steps. Default: run in this process. A stage in several
            processes always runs under torchrun.
    """
    work = write_step(step)
    words = ["step", str(work), "--events", "json"]
    if job and job.ray:
        start: Start = partial(job.ray, step, send, _words_on_node(step, words), job.environment)
        run_subprocess(start, step, send, lock_descriptor, job.processes)
        return
    several = runs_in_several(step.stage)
    if not several and not job:
        run_step(step, send)
        return
    # torchrun sets OMP_NUM_THREADS to 1 unless it is set; use all cores instead, shared among the processes.
    threads = {"OMP_NUM_THREADS": str(step.stage.runtime.share())}
    environment = {**threads, **os.environ}
    if job:
        environment |= job.environment
    if job and job.fork and not several:
        start = partial(job.fork, words, environment, ["vfm.cli.recipe", _module_of(step.stage)])
    else:
        command = torchrun_command(step, work) if several else [*python_command(), "-m", "vfm", *words]
        start = partial(start_subprocess, command, environment)
    with nullcontext(job.processes) if job else signals_forwarded() as processes:
        run_subprocess(start, step, send, lock_descriptor, processes)


def _words_on_node(step: Step, words: list[str]) -> list[str]:
    """Build the arguments of Python that run a step on one machine, even if this one belongs to a job of several."""
    vfm = ["-m", "vfm", *words]
    several = spans_machines(step.stage) and step.stage.runtime.processes > 1
    return ["-m", *_torchrun(step, "--standalone"), *vfm] if several else vfm


def _module_of(stage: Stage) -> str:
    """Find the module that does a stage's work."""
    return stage.work.partition(":")[0] or type(stage).__module__


def runs_in_several(stage: Stage) -> bool:
    """Check whether a stage runs in several processes, on all machines of a Slurm job."""
    return spans_machines(stage) and (stage.runtime.processes > 1 or machines_of_job() > 1)


def torchrun_command(step: Step, work: Path) -> list[str]:
    """Build the command that runs a prepared step in several processes, on this machine or in a Slurm job."""
    words = ["-m", "vfm", "step", str(work), "--events", "json"]
    python, machines = python_command(), machines_of_job()
    if "SLURM_JOB_ID" in os.environ:
        # Slurm also sends the job's signal to torchrun, which would end at once. The run forwards it as SIGTERM, after
        # which the processes save.
        python = python_command("--ignore-signal=USR1", "--ignore-signal=USR2")
    if machines < 2:
        return [*python, "-m", *_torchrun(step, "--standalone"), *words]
    job = os.environ["SLURM_JOB_ID"]
    where = [f"--nnodes={machines}", f"--rdzv-id={job}-{step.slot.name}", "--rdzv-backend=c10d"]
    srun = ["srun", f"--nodes={machines}", f"--ntasks={machines}", "--ntasks-per-node=1", "--overlap"]
    endpoint = f"--rdzv-endpoint={socket.gethostname()}:{_free_port()}"
    return [*srun, *python, "-m", *_torchrun(step, *where, endpoint), *words]


def _free_port() -> int:
    """Find a free port of this machine. A fixed one would collide if several steps of a job run at once."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def machines_of_job() -> int:
    """Look up the number of machines of the Slurm job that this process belongs to. 1 outside of a job."""
    if "SLURM_JOB_ID" not in os.environ:
        return 1
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def torchrun_lines(step: Step, work: Path) -> list[str]:
    """Format the commands that start a prepared step on one machine, and on each of several machines."""
    several = ["--nnodes=MACHINES", f"--rdzv-id={work.name}", "--rdzv-backend=c10d", "--rdzv-endpoint=FIRST_HOST:29400"]
    lines = []
    for where in (["--standalone"], several):
        lines.append(shlex.join([*python_command(), "-m", *_torchrun(step, *where), "-m", "vfm", "step", str(work)]))
    return lines


def _torchrun(step: Step, *where: str) -> list[str]:
    return ["torch.distributed.run", *where, f"--nproc-per-node={step.stage.runtime.processes}"]


def _check_inputs(step: Step, rank: int, send: Send) -> None:
    """Compare the hashes of all inputs once, each process a share of the files."""

    def log(count: int) -> None:
        if not rank:
            message = f"comparing the hashes of the inputs: {count / 1e9:,.1f} GB to read"
            send(Event("log", step.stage.name, {"message": message}))

    def gather(lines: list[str]) -> list[str]:
        exchanged = load_function("vfm.train.parallel.dist:exchanged")
        return list(filter(None, "\n".join(exchanged("\n".join(lines))).splitlines()))

    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        check_together(step.folders.values(), MANIFEST_FILE, rank, size, gather, log)


def run_step(step: Step, send: Send) -> None:
    """Run a stage in this process. Of several processes, the first publishes the artifact."""
    stage, slot = step.stage, step.slot
    rank = int(os.environ.get("RANK", "0"))
    if runs_in_several(stage):
        _check_inputs(step, rank, send)
    if rank:  # only the first process publishes; the others write to a scratch folder
        with tempfile.TemporaryDirectory(prefix=f"vfm-rank-{rank}-") as scratch, suppress(LeftToFirst):
            stage.run(Context(stage.name, Path(scratch), slot.work, step.folders))
        return
    shutil.rmtree(slot.part, ignore_errors=True)  # left by an attempt that was killed
    slot.part.mkdir()
    notes = EventNotes(slot.work / NOTES_FILE)

    def note_and_send(event: Event) -> None:
        notes.add(event)
        send(event)

    context = Context(stage.name, slot.part, slot.work, step.folders, note_and_send)
    begun, roots = time.monotonic(), step.roots()
    with hashed_meanwhile(slot.root, step.fingerprints), naming_full_disks(slot.part):
        artifact = stage.run(context)
    if not isinstance(artifact, type(stage).makes):
        raise TypeError(f"{stage.kind}: expected a {type(stage).makes.__name__}, got a {type(artifact).__name__}")
    manifest = build_manifest(step, artifact, context, notes, time.monotonic() - begun, roots)
    slot.publish(manifest, without=artifact.caches)
