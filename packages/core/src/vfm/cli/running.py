"""Verbs that run things: run, plan, step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pluggy
import typer
from rich.table import Table

from vfm.cli.command import (
    DEFAULT_STORE,
    DebugOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    console,
    lines_of,
    show_results,
    verb,
)
from vfm.config import UserError
from vfm.events import Event
from vfm.flow.listeners import ConsoleListener, JsonLinesListener, PipeListener, TensorBoardListener, sender
from vfm.flow.plan import Step, make_plan
from vfm.flow.recipe import Recipe, load_recipe
from vfm.flow.run import Outcome
from vfm.flow.store import Store
from vfm.plugins import load_plugins, stage_types


def _plan(recipe: str, store: Path, overrides: list[str] | None) -> tuple[pluggy.PluginManager, Recipe, list[Step]]:
    manager = load_plugins()
    loaded = load_recipe(recipe, stage_types(manager), overrides or ())
    return manager, loaded, make_plan(loaded, Store(store))


@verb
def run(
    recipe: RecipeArgument,
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make everything again, also what is there.")] = False,
    prepare: Annotated[
        str | None, typer.Option(help="Prepare this stage for torchrun elsewhere, and stop before it.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write metrics for TensorBoard.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what went wrong.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run a recipe: what is there already is not made again, what was interrupted goes on."""
    manager, loaded, steps = _plan(recipe, store, set)
    outcome = perform(
        manager, loaded, steps, Store(store), fresh=fresh, prepare=prepare, tensorboard=tensorboard, quiet=quiet
    )
    if outcome and not quiet:
        show_results(outcome.directory)
        tell_outcome(outcome)


def perform(
    manager: pluggy.PluginManager,
    recipe: Recipe,
    steps: list[Step],
    store: Store,
    *,
    fresh: bool = False,
    prepare: str | None = None,
    tensorboard: bool = False,
    quiet: bool = False,
    jobs: int = 1,
) -> Outcome | None:
    """Runs a planned recipe with its listeners, and draws its page; None where it was only prepared."""
    from vfm.flow import report
    from vfm.flow import run as runner

    directory = store.run_directory(recipe.name)
    with ExitStack() as opened:
        send = sender(manager, _listeners(directory, opened, quiet=quiet, tensorboard=tensorboard))
        try:
            if prepare:
                _prepare(recipe, steps, prepare, send, store, fresh=fresh)
                return None
            outcome = runner.run(recipe, steps, store, send, fresh=fresh, jobs=jobs)
        except BaseException as error:
            with suppress(OSError):  # on a full disk, what went wrong is worth more than that it cannot be noted
                send(Event("run_failed", None, {"message": str(error) or type(error).__name__}))
            raise
        try:
            page = str(report.current_report(outcome.directory))
        except UserError as error:  # the results are there: a page that cannot be drawn does not make the run fail
            page = f"not drawn ({error})"
        send(Event("run_finished", None, {"seconds": round(outcome.seconds, 2), "report": page}))
    return replace(outcome, page=page)


def tell_outcome(outcome: Outcome) -> None:
    """The line under a run's results."""
    console.print(f"{outcome.seconds:.0f} s   report: {outcome.page}", highlight=False, soft_wrap=True)


def _listeners(directory: Path, opened: ExitStack, *, quiet: bool, tensorboard: bool) -> list[Any]:
    """The listeners of a run, closed with `opened`."""
    from vfm.flow.run import EVENTS_FILE

    listeners: list[Any] = [ConsoleListener(console, quiet=quiet), JsonLinesListener(directory / EVENTS_FILE)]
    if tensorboard:
        listeners.append(TensorBoardListener(directory / "tensorboard"))
    for listener in listeners:
        opened.callback(listener.close)
    return listeners


def _prepare(
    recipe: Recipe, steps: list[Step], name: str, send: Callable[[Event], None], store: Store, *, fresh: bool
) -> None:
    from vfm.flow import launch
    from vfm.flow import run as runner

    wanted = next((step for step in steps if step.stage.name == name), None)
    if wanted is None:
        raise UserError(f"--prepare {name}: no stage has this name; stages: {', '.join(s.stage.name for s in steps)}")
    if wanted.status == "cached" and not fresh:
        raise UserError(f"--prepare {name}: {wanted.slot.name} is there already, nothing is left to prepare")
    runner.run(recipe, steps, store, send, fresh=fresh, before=wanted)
    with wanted.slot.lock(partial(_tell, send, name)):  # whoever is making it now must not lose what it has
        work = launch.write_step(wanted)
    console.print(f"prepared; on every node: torchrun ... -m vfm step {work}", highlight=False, soft_wrap=True)


@verb
def plan(
    recipe: RecipeArgument,
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    debug: DebugOption = False,
) -> None:
    """Check a recipe and show what `run` would do, without doing it."""
    _, loaded, steps = _plan(recipe, store, set)
    colours = {"cached": "green", "resume": "yellow", "new": "cyan"}
    table = Table("stage", "kind", "artifact", "status", "inputs", title=loaded.name, title_justify="left")
    for step in steps:
        status = f"[{colours[step.status]}]{step.status}[/]"
        table.add_row(step.stage.name, step.stage.kind, step.slot.name, status, ", ".join(step.inputs))
    console.print(table)


@verb
def step(
    directory: Annotated[Path, typer.Argument(readable=False, help="A prepared work folder (`vfm run --prepare`).")],
    events: Annotated[str, typer.Option(help="text, or json: events as JSON lines on standard output.")] = "text",
    debug: DebugOption = False,
) -> None:
    """Run one prepared stage, under torchrun or a scheduler; the first process publishes the artifact."""
    from vfm.flow.launch import read_step, run_step

    manager = load_plugins()
    send = sender(manager, [PipeListener() if events == "json" else ConsoleListener(console)])
    loaded = read_step(directory, stage_types(manager))
    begun = time.time()
    # Started by `vfm run` (json), that run holds the lock; by a scheduler, the first process takes it.
    alone = events != "json" and os.environ.get("RANK", "0") == "0"
    wait = partial(_tell, send, loaded.stage.name)
    try:
        with loaded.slot.lock(wait) if alone else nullcontext():
            if alone and loaded.slot.status == "cached":
                raise UserError(f"{loaded.slot.name} is there already: another run made it")
            run_step(loaded, send)
    except (UserError, OSError) as error:
        if events == "json":
            send(Event("run_failed", loaded.stage.name, {"message": "\n".join(lines_of(error))}))
        raise
    if events != "json":
        console.print(f"{loaded.slot.name} after {time.time() - begun:.0f} s", highlight=False)


def _tell(send: Callable[[Event], None], stage: str, message: str) -> None:
    send(Event("log", stage, {"message": message}))
