"""Run a plan: preflight checks, every step whose artifact is missing, then the record of the run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.flow.execution.execution import execute
from vfm.flow.execution.parallel import Jobs, check_jobs, run_in_parallel
from vfm.flow.execution.subprocesses import Job, Send
from vfm.flow.plan.plan import Step
from vfm.flow.plan.preflight import preflight
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe
from vfm.flow.records.manifest import read_manifest
from vfm.flow.records.run_record import after_rerun, commitments, record_of
from vfm.flow.records.runs import EVENTS_FILE, RUN_FILE, open_run, write_record
from vfm.interfaces import Event, Preempted
from vfm.storage.integrity import read_sealed


@dataclass(frozen=True)
class RunResult:
    """The result of a run, with its folder, steps in order, seconds, and the path of its report if it was drawn."""

    directory: Path
    steps: tuple[Step, ...]
    seconds: float
    page: str = ""


def run_plan(
    recipe: Recipe,
    steps: Sequence[Step],
    store: Store,
    send: Send,
    *,
    directory: Path | None = None,
    fresh: bool = False,
    only: Sequence[Step] | None = None,
    jobs: Jobs = 1,
) -> RunResult:
    """Run the steps of a plan whose artifacts are missing.

    Args:
        recipe: The checked recipe.
        steps: Its plan.
        store: Store for the artifacts.
        send: Receives every event.
        directory: Folder of the run. None: chosen by `open_run`.
        fresh: Run every step again, cached or not.
        only: Run only these steps of the plan, and do not record the run as finished.
        jobs: Number of concurrent steps. If more than one, each runs in a subprocess (`vfm.flow.execution.parallel`).
            ray: as many as a Ray cluster has room for.

    Raises:
        UserError: If a check failed, an input is missing, or a stage reported a mistake that the user can correct.
    """
    check_jobs(jobs)
    started, begun = time.time(), time.monotonic()  # the system clock may be set back during the run
    directory = directory or open_run(recipe, steps, store)
    overview = [{"name": s.stage.name, "kind": s.stage.kind, "id": s.slot.name, "status": s.status} for s in steps]
    send(Event("run_started", None, {"recipe": recipe.name, "directory": str(directory), "stages": overview}))
    preflight(steps, fresh=fresh)
    chosen = steps if only is None else only
    for step in chosen if fresh else ():
        step.slot.discard(_log_waiting(step, send))
    if jobs != 1:
        any_ran = run_in_parallel(chosen, run_one, send, jobs)
    else:
        any_ran = sum(run_one(step, send) for step in chosen) > 0  # `sum`, since `any` would stop at the first
    result = RunResult(directory, tuple(steps), time.monotonic() - begun)
    if only is None:
        _record(recipe, result, store, started, any_ran=any_ran)
    return result


def run_one(step: Step, send: Send, job: Job | None = None) -> bool:
    """Run one step under its lock, unless its artifact exists.

    Args:
        step: The step.
        send: Receives its events.
        job: As in `execute`.

    Returns:
        Whether the step had to run.
    """
    name = step.stage.name
    kind = step.stage.kind
    slot = step.slot
    begun = time.monotonic()
    if step.status != "cached":
        with slot.lock(_log_waiting(step, send)) as descriptor:
            status = step.status  # another run may have finished it while this one waited for the lock
            if status != "cached":
                about = {"kind": kind, "id": slot.name, "status": status, "directory": str(slot.work)}
                send(Event("stage_started", name, about))
                try:
                    execute(step, send, descriptor, job)
                except Preempted:
                    raise
                except UserError as error:
                    raise UserError(step.located(str(error)) if step.place else str(error)) from error
                # A library may call exit. The run would end without a message, even as if it had succeeded.
                except SystemExit as stop:
                    raise RuntimeError(f"{name}: its code ended the process, with code {stop.code}") from stop
                seconds = round(time.monotonic() - begun, 2)
                send(_finished(step, seconds=seconds, cached=False))
                return True
    shutil.rmtree(slot.work, ignore_errors=True)  # left by a run that was killed between publishing and tidying up
    send(_finished(step, seconds=0.0, cached=True))
    for message in read_manifest(slot.artifact).get("lacks_data", ()):
        again = f"when it was made; `vfm run RECIPE --until {name} --fresh` makes it again, with its inputs"
        send(Event("warning", name, {"message": f"{message} ({again})"}))
    return False


def _log_waiting(step: Step, send: Send) -> Callable[[str], None]:
    return lambda message: send(Event("log", step.stage.name, {"message": message}))


def _finished(step: Step, **data: Any) -> Event:
    manifest = read_manifest(step.slot.artifact)
    numbers = {"numbers": manifest["numbers"], "units": manifest.get("units", {})}
    about = {"kind": step.stage.kind, "id": step.slot.name, **numbers}
    return Event("stage_finished", step.stage.name, {**about, **data})


def _record(recipe: Recipe, result: RunResult, store: Store, started: float, *, any_ran: bool) -> None:
    """Write all data about this run that the report needs, so that it can be drawn again later."""
    before = {}
    with suppress(UserError):  # a damaged file is replaced
        before = read_sealed(result.directory / RUN_FILE)
    record = record_of(recipe, result.steps, store.root, started, round(result.seconds, 2))
    record |= commitments(result.steps, result.directory / EVENTS_FILE)
    record = after_rerun(record, before, made=any_ran)
    if record != before:
        write_record(result.directory, record)
