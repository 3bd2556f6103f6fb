"""Run a recipe with listeners, trackers, events, and the report at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pluggy

from vfm.base import UserError, load_function
from vfm.flow.execution.parallel import Jobs
from vfm.flow.execution.run import RunResult, run_plan
from vfm.flow.execution.subprocesses import Send
from vfm.flow.listeners.listeners import JsonLinesListener, sender
from vfm.flow.listeners.trackers import Tracker, open_tracker
from vfm.flow.plan.plan import Step
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe
from vfm.flow.records.runs import EVENTS_FILE, open_run, through_link
from vfm.interfaces import Event


def run_recipe(
    manager: pluggy.PluginManager,
    recipe: Recipe,
    steps: list[Step],
    store: Store,
    listener: Any,
    *,
    fresh: bool = False,
    track: Sequence[str] = (),
    only: Sequence[Step] | None = None,
    jobs: Jobs = 1,
) -> RunResult:
    """Run a planned recipe and draw its report. If only a part of the recipe runs, no report is drawn.

    Args:
        manager: The plugins, whose listeners receive every event.
        recipe: The checked recipe.
        steps: Its plan.
        store: The store that the artifacts are written to.
        listener: Shows the events to the user. It is closed at the end.
        fresh: Run every step again, cached or not.
        track: Names of trackers that receive the metrics.
        only: Run only these steps of the plan.
        jobs: Number of concurrent steps.

    Raises:
        UserError: If a check failed, or a stage reported a mistake that the user can correct.
    """
    directory = open_run(recipe, steps, store)
    with reporting(manager, recipe, store, directory, listener, track) as send:
        outcome = run_plan(recipe, steps, store, send, directory=directory, fresh=fresh, only=only, jobs=jobs)
        if only is not None:
            return outcome
        try:
            page = str(through_link(load_function("vfm.report:current_report")(outcome.directory)))
        except UserError as error:  # the results exist, so a report that cannot be drawn does not fail the run
            page = f"not drawn ({error})"
        send(Event("run_finished", None, {"seconds": round(outcome.seconds, 2), "report": page}))
    return replace(outcome, page=page)


@contextmanager
def reporting(
    manager: pluggy.PluginManager,
    recipe: Recipe,
    store: Store,
    directory: Path,
    listener: Any,
    track: Sequence[str] = (),
) -> Iterator[Send]:
    """Yield the function that sends a run's events to all listeners.

    An error within the context is sent too.

    Args:
        manager: Plugins, whose listeners receive the events.
        recipe: Recipe of the run.
        store: Store of the artifacts.
        directory: Folder of the run.
        listener: Listener of the caller.
        track: Names of trackers.
    """

    def on_wait(message: str) -> None:  # only to the user, since the events file is what this run waits for
        listener.vfm_event(Event("warning", None, {"message": message}))

    with ExitStack() as opened:
        listeners = [listener, JsonLinesListener(directory / EVENTS_FILE, on_wait)]
        for opened_listener in listeners:
            opened.callback(opened_listener.close)
        send = sender(manager, listeners)
        for name in dict.fromkeys(track):
            tracker = open_tracker(name, directory, recipe.name)
            manager.register(tracker, f"--track {name}")  # as a plugin: if it fails, the run continues without it
            opened.callback(_close, tracker, name, send)
        note = _unusual_place(directory, recipe, store)
        if note:
            send(Event("log", None, {"message": note}))
        try:
            yield send
        except BaseException as error:
            with suppress(OSError):  # on a full disk, this event cannot be written either; raise the first error
                about = {"message": str(error) or type(error).__name__, "interrupted": not isinstance(error, Exception)}
                send(Event("run_failed", None, about))
            raise


def _unusual_place(directory: Path, recipe: Recipe, store: Store) -> str:
    """Explain why a run is not in the folder named after its recipe.

    The text is empty if it is.
    """
    name = directory.name.rpartition("@")[0]
    if directory.parent != store.runs:
        return f"{store.root} may not be written, and all artifacts exist: this run is kept in {directory} only"
    if name != recipe.name:
        return f"{store.runs / recipe.name} belongs to another recipe; see {store.runs / name}"
    return ""


def _close(tracker: Tracker, name: str, send: Send) -> None:
    try:
        tracker.close()
    except Exception as error:
        why = f"its last metrics may be lost: {type(error).__name__}: {error}"
        send(Event("warning", None, {"message": f"--track {name}: {why}"}))
