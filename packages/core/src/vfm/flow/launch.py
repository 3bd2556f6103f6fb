"""Runs one step: in this process, in one of its own, or under torchrun when the stage wants several processes.

A step's work folder holds `step.json`: all that `vfm step DIR` needs, so a scheduler can start it on other machines.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from vfm.artifacts import Artifact, Report
from vfm.config import UserError
from vfm.events import Event
from vfm.flow.children import Send, run_children
from vfm.flow.plan import Step
from vfm.flow.store import Slot
from vfm.interfaces import Training
from vfm.plugins import unknown_kind
from vfm.stage import Context, Stage, refs

STEP_FILE = "step.json"
NOTES_FILE = "notes.json"


def write_step(step: Step) -> Path:
    """Prepares the work folder of a step and returns it."""
    step.slot.begin()
    record = {
        "stage": step.stage.model_dump(mode="json"),
        "identity": step.identity,
        "inputs": step.inputs,
        "folders": {ref: str(path) for ref, path in step.folders.items()},
        "fingerprints": step.fingerprints,
        "slot": {"root": str(step.slot.root.resolve()), "name": step.slot.name},
    }
    (step.slot.work / STEP_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return step.slot.work


def torchrun_command(step: Step, work: Path) -> list[str]:
    """The command that runs a prepared step in several processes of this machine."""
    processes = step.stage.runtime.processes
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, "-m", "vfm", "step", str(work), "--events", "json"]


def execute(step: Step, send: Send, lock_descriptor: int, apart: Mapping[str, str] | None = None) -> None:
    """Runs a step whose lock is held, and publishes its artifact.

    Args:
        step: the step.
        send: told its events.
        lock_descriptor: of the lock.
        apart: more environment of a process of its own; None: in this one, unless it is a training of several.
    """
    work = write_step(step)
    processes = step.stage.runtime.processes
    if processes > 1 and isinstance(step.stage, Training):
        share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ, **(apart or {})}
        run_children(torchrun_command(step, work), share, step, send, lock_descriptor)
    elif apart is not None:
        command = [sys.executable, "-m", "vfm", "step", str(work), "--events", "json"]
        run_children(command, {**os.environ, **apart}, step, send, lock_descriptor)
    else:
        run_step(step, send)


def read_step(work: Path, known: Mapping[str, type[Stage]]) -> Step:
    """Reads a work folder back; `known` holds the stage types by kind."""
    try:
        record = json.loads((work / STEP_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{work}: not a prepared step ({STEP_FILE} is missing)") from None
    kind = record["stage"]["kind"]
    if kind not in known:
        raise UserError(f"{work}: {unknown_kind(kind, dict(known))}")
    return Step(
        stage=known[kind].model_validate(record["stage"], context=known),
        identity=record["identity"],
        inputs=record["inputs"],
        folders={ref: Path(path) for ref, path in record["folders"].items()},
        fingerprints=record["fingerprints"],
        slot=Slot(Path(record["slot"]["root"]), record["slot"]["name"]),
    )


def run_step(step: Step, send: Send) -> None:
    """Runs a stage and, in the first process, publishes what it made."""
    stage, slot = step.stage, step.slot
    if rank := int(os.environ.get("RANK", "0")):  # what the first one publishes, others write where it is thrown away
        with tempfile.TemporaryDirectory(prefix=f"vfm-rank-{rank}-") as thrown_away:
            stage.run(Context(stage.name, Path(thrown_away), slot.work, step.folders))
        return
    shutil.rmtree(slot.part, ignore_errors=True)  # of an attempt that was killed
    slot.part.mkdir()
    notes = _Notes(slot.work / NOTES_FILE)

    def tell(event: Event) -> None:
        notes.take(event)
        send(event)

    context = Context(stage.name, slot.part, slot.work, step.folders, tell)
    begun = time.time()
    artifact = stage.run(context)
    if not isinstance(artifact, type(stage).makes):
        raise TypeError(f"{stage.kind} should make a {type(stage).makes.__name__}, made {type(artifact).__name__}")
    slot.publish(_manifest(step, artifact, context, notes, time.time() - begun))


class _Notes:
    """What the manifest keeps of the events of a stage: the last numbers and the warnings.

    Kept in a file: what was told before a crash is not told again after it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.numbers: dict[str, float] = {}
        self.warnings: list[str] = []
        self.kernels: str | None = None  # told by each training, a resumed one too
        if file.is_file():
            self.numbers, self.warnings = json.loads(file.read_text(encoding="utf-8"))

    def take(self, event: Event) -> None:
        if event.type == "kernels":
            self.kernels = event.data["running"]
            return
        if event.type == "metrics":
            self.numbers.update(event.data["values"])
        elif event.type == "warning" and event.data["message"] not in self.warnings:
            self.warnings.append(event.data["message"])
        else:
            return
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps([self.numbers, self.warnings]), encoding="utf-8")
        part.replace(self.file)


def _manifest(step: Step, artifact: Artifact, context: Context, notes: _Notes, seconds: float) -> dict[str, Any]:
    if isinstance(artifact, Report):
        notes.numbers = {f"{metric.model} {metric.name}".strip(): metric.value for metric in artifact.metrics}
    names = {ref for _, ref in refs(step.stage)}
    return {
        "kind": step.stage.kind,
        "name": step.stage.name,
        "version": step.stage.version,
        "identity": step.identity,
        "config": step.stage.model_dump(mode="json", exclude={"name", "kind", "runtime"}),
        "runtime": step.stage.runtime.model_dump(),
        "kernels": notes.kernels,
        "inputs": {name: step.inputs[name] for name in sorted(names)},
        "sources": step.fingerprints,
        "seed": getattr(step.stage, "seed", None),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 2),
        "numbers": notes.numbers,
        "bad_samples": dict(sorted(context.bad.items())),
        "warnings": notes.warnings,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": library_versions(),
        "commit": _commit(),
    }


def library_versions() -> dict[str, str]:
    """Versions of vfm's packages and of the libraries that results hang on."""
    wanted = {"torch", "torchvision", "timm", "open-clip-torch", "diffusers", "numpy", "pillow", "pyarrow"}
    found = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    return {name: version for name, version in sorted(found.items()) if name in wanted or name.startswith("vfm-")}


def _commit() -> str | None:
    """The commit of vfm's own source where it runs from a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "log", "-1", "--format=%H", "--", str(here)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
