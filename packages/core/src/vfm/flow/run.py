"""`vfm run`: preflight, then each missing step, then the links and the report."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.config import UserError
from vfm.events import Event
from vfm.flow.children import Send
from vfm.flow.launch import execute
from vfm.flow.plan import Step
from vfm.flow.recipe import Recipe
from vfm.flow.store import MANIFEST_FILE, Store, read_record
from vfm.flow.together import run_together
from vfm.interfaces import Training
from vfm.stage import Preflight

LINKS = "artifacts"
RUN_FILE = "run.json"
EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What a run left: its folder, the steps in order, and where its page is once it is drawn."""

    directory: Path
    steps: tuple[Step, ...]
    seconds: float
    page: str = ""


def run(
    recipe: Recipe,
    steps: Sequence[Step],
    store: Store,
    send: Send,
    *,
    fresh: bool = False,
    before: Step | None = None,
    jobs: int = 1,
) -> Outcome:
    """Runs what is missing of a plan.

    Args:
        recipe: the checked recipe.
        steps: its plan.
        store: where artifacts go.
        send: told every event.
        fresh: make everything again, also what is there.
        before: stop before this step of the plan.
        jobs: steps at a time, where more than one each in a process of its own.

    Raises:
        UserError: something does not fit, is missing, or went wrong in a way that the user can mend.
    """
    begun = time.time()
    directory = prepare_run_directory(recipe, steps, store)
    overview = [{"name": s.stage.name, "kind": s.stage.kind, "id": s.slot.name, "status": s.status} for s in steps]
    send(Event("run_started", None, {"recipe": recipe.name, "directory": str(directory), "stages": overview}))
    if fresh:
        for step in steps:
            step.slot.discard(_wait(step, send))
    preflight(steps)
    made = run_together(steps, run_one, send, jobs) if jobs > 1 else False
    for step in steps if jobs == 1 else ():
        if step is before:
            return Outcome(directory, tuple(steps), time.time() - begun)
        made |= run_one(step, send)
    outcome = Outcome(directory, tuple(steps), time.time() - begun)
    _write_run_file(recipe, outcome, begun, made=made)
    return outcome


def preflight(steps: Sequence[Step]) -> None:
    """Lets every stage that will run check what can be known beforehand. All complaints are told at once."""
    stages = {step.stage.name: step.stage for step in steps}
    complaints = []
    for step in steps:
        if step.status == "cached":
            continue
        known = {ref: folder for ref, folder in step.folders.items() if folder.is_dir()}
        evals = step.stage.evals if isinstance(step.stage, Training) else []
        for prefix, stage in [("", step.stage), *((f"evals.{e.name}: ", e) for e in evals)]:
            try:
                if isinstance(stage, Training):
                    _check_runtime(stage)
                stage.preflight(Preflight(stages, known))
            except UserError as error:
                complaints.append(f"{step.stage.name}: {prefix}{error}")
    if complaints:
        raise UserError("\n".join(complaints))


def _check_runtime(stage: Training) -> None:
    from vfm.train.kernels import check_kernels

    check_kernels(stage.runtime)


def run_one(step: Step, send: Send, apart: Mapping[str, str] | None = None) -> bool:
    """Runs one step unless its artifact is there, under its lock; gives whether it ran. `apart` as in `execute`."""
    name, kind, slot = step.stage.name, step.stage.kind, step.slot
    begun = time.time()
    if step.status != "cached":
        with slot.lock(_wait(step, send)) as descriptor:
            status = step.status  # another run may have finished it while this one waited
            if status != "cached":
                about = {"kind": kind, "id": slot.name, "status": status, "directory": str(slot.work)}
                send(Event("stage_started", name, about))
                execute(step, send, descriptor, apart)
                seconds = round(time.time() - begun, 2)
                send(_finished(step, seconds=seconds, cached=False))
                return True
    shutil.rmtree(slot.work, ignore_errors=True)  # of a run that was killed between publishing and tidying up
    send(_finished(step, seconds=0.0, cached=True))
    return False


def _wait(step: Step, send: Send) -> Callable[[str], None]:
    return lambda message: send(Event("log", step.stage.name, {"message": message}))


def _finished(step: Step, **data: Any) -> Event:
    manifest = read_manifest(step.slot.artifact)
    about = {"kind": step.stage.kind, "id": step.slot.name, "numbers": manifest["numbers"]}
    return Event("stage_finished", step.stage.name, {**about, **data})


def read_manifest(artifact: Path) -> dict[str, Any]:
    """The manifest of a published artifact."""
    return read_record(artifact / MANIFEST_FILE, "kind", "identity", "inputs", "numbers", "finished")


def prepare_run_directory(recipe: Recipe, steps: Sequence[Step], store: Store) -> Path:
    """The folder of a recipe's run, with a link for each stage; it leads nowhere until the artifact is published.

    The links stand from the start, so that `vfm clean` keeps what an interrupted run has made so far.
    """
    directory = store.run_directory(recipe.name)
    links = directory / LINKS
    links.mkdir(parents=True, exist_ok=True)
    for step in steps:
        temporary = directory / f".link-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("../../..") / step.slot.name)
        temporary.replace(links / step.stage.name)  # at once: another run of the same recipe may do the same
    for link in links.iterdir():
        if link.name not in {step.stage.name for step in steps}:
            link.unlink(missing_ok=True)
    return directory


def _write_run_file(recipe: Recipe, outcome: Outcome, begun: float, *, made: bool) -> None:
    """Keeps what the report needs to know of this run, so that it can be drawn again later.

    A run that found everything as the last one left it leaves that one's file, and with it the page, as they are.
    """
    what = {
        "recipe": recipe.name,
        "description": recipe.description,
        "text": recipe.text,
        "stages": [step.stage.name for step in outcome.steps],
        "artifacts": [step.slot.name for step in outcome.steps],
    }
    file = outcome.directory / RUN_FILE
    if not made and file.is_file():
        with suppress(UserError):  # a damaged file is written anew
            before = read_record(file)
            if all(before.get(key) == value for key, value in what.items()):
                return
    how = {"command": shlex.join(["vfm", *sys.argv[1:]]), "started": begun, "seconds": round(outcome.seconds, 2)}
    part = file.with_suffix(".part")
    part.write_text(json.dumps({**what, **how}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)
