"""The commands `run`, `step` and `init`."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vfm.api.recipe_run import run_recipe
from vfm.base import UserError
from vfm.cli.command import (
    DEFAULT_STORE,
    DebugOption,
    JobsOption,
    QuietOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    command,
    console,
    error_messages,
    note,
    show,
    show_results,
)
from vfm.cli.plan import planned
from vfm.cli.terminal import completion
from vfm.flow.execution.execution import read_step, run_step, torchrun_lines, write_step
from vfm.flow.execution.run import RunResult
from vfm.flow.execution.subprocesses import Send, end_without_reader
from vfm.flow.listeners.listeners import ConsoleListener, PipeListener, sender
from vfm.flow.plan.plan import Step, stage_names, steps_until
from vfm.flow.plan.preflight import preflight
from vfm.flow.plan.store import LINKS, Store
from vfm.flow.recipe.recipe_source import find_recipe, read_text
from vfm.flow.recipe.schema import json_schema
from vfm.interfaces import (
    Artifact,
    ClipCheckpoint,
    CuratedSubset,
    DenseCheckpoint,
    Event,
    ExportedModel,
    GeneratorCheckpoint,
    VideoClassifier,
    VisionCheckpoint,
    load_plugins,
    refs,
    stage_types,
)

SCHEMA_FILE = "vfm.schema.json"
SCHEMA_LINE = "# yaml-language-server: $schema="  # read by the YAML extension of VS Code and other editors
RESULTS: dict[str, tuple[type[Artifact], ...]] = {
    "model": (
        ClipCheckpoint,
        VisionCheckpoint,
        DenseCheckpoint,
        VideoClassifier,
        GeneratorCheckpoint,
        ExportedModel,
    ),
    "subset": (CuratedSubset,),
}


@command
def run(
    recipe: RecipeArgument,
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every stage again, cached or not.")] = False,
    prepare: Annotated[
        str | None, typer.Option(help="Name of a stage to prepare for torchrun elsewhere. The run stops before it.")
    ] = None,
    jobs: JobsOption = 1,
    until: Annotated[
        str | None, typer.Option(help="Run only this stage, with all its seeds, and the stages that it needs.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Also send metrics to tensorboard, wandb, trackio or mlflow; repeatable."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Submit the run as a job instead: slurm, or local.",
            autocompletion=completion.words("slurm", "local"),
        ),
    ] = None,
    job_per_stage: Annotated[
        bool,
        typer.Option(
            "--job-per-stage",
            help="With --on slurm: submit a job for each stage, an array for its seeds, which starts after its inputs.",
        ),
    ] = False,
    job: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A parameter of the job for submitit; repeatable.")
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a recipe. Finished stages are cached, interrupted ones resume."""
    if on not in (None, "slurm", "local"):
        raise UserError(f"--on: expected slurm or local, got {on}")
    manager, loaded, steps = planned(recipe, store, set)
    if on or job or job_per_stage:
        from vfm.cli.jobs import submit_run, submit_stages  # submitit is an extra

        preflight(steps, fresh=fresh)
        if job_per_stage:
            submit_stages(on, job or (), store, loaded, steps)
        else:
            submit_run(on, job or (), store)
        return
    chosen = _chosen(steps, prepare, fresh=fresh) if prepare else None
    only = None
    if chosen:
        only = steps[: steps.index(chosen)]
    elif until:
        only = steps_until(steps, until)
    listener = ConsoleListener(console, quiet=quiet)
    outcome = run_recipe(
        manager, loaded, steps, Store(store), listener, fresh=fresh, track=track or (), only=only, jobs=jobs
    )
    if chosen:
        _prepare(chosen, fresh=fresh)
    elif not quiet and not until:
        show_results(outcome.directory)
        show_outcome(outcome)


def show_outcome(outcome: RunResult) -> None:
    """Print where a run's models and subsets are, and the line below its results."""
    for step in outcome.steps:
        stage = step.stage
        label = next((label for label, types in RESULTS.items() if issubclass(stage.makes, types)), None)
        if label and any(refs(stage)):  # a stage without inputs imports what exists
            show(f"{label}: {outcome.directory / LINKS / stage.name}")
    show(f"{outcome.seconds:.0f} s   report: {outcome.page}")


def _chosen(steps: list[Step], name: str, *, fresh: bool) -> Step:
    """Find the step to prepare."""
    chosen = next((step for step in steps if step.stage.name == name), None)
    if chosen is None:
        raise UserError(f"--prepare {name}: no stage has this name; stages: {', '.join(stage_names(steps))}")
    if chosen.status == "cached" and not fresh:
        raise UserError(f"--prepare {name}: {chosen.slot.name} is already finished")
    return chosen


def _prepare(chosen: Step, *, fresh: bool) -> None:
    """Prepare a step whose inputs exist, and print the commands that start it."""
    if fresh:
        chosen.slot.discard(note)
    with chosen.slot.lock(note):  # a process that is running the step must not lose its files
        work = write_step(chosen)
    show("prepared; start it on one machine, or the second line on each of several:")
    for line in torchrun_lines(chosen, work):
        show(f"  {line}")


@command
def step(
    directory: Annotated[Path, typer.Argument(readable=False, help="Work folder from `vfm run --prepare`.")],
    events: Annotated[
        str, typer.Option(help="text, or json to write events as JSON lines, and nothing else, to standard output.")
    ] = "text",
    debug: DebugOption = False,
) -> None:
    """Run one prepared stage, under torchrun or a scheduler."""
    if events not in ("text", "json"):
        raise UserError(f"--events: expected text or json, got {events}")
    manager = load_plugins()
    send: Send = _into_pipe() if events == "json" else sender(manager, [ConsoleListener(console)])
    loaded = read_step(directory, stage_types(manager))
    begun = time.monotonic()
    # With `--events json` the run that started this process holds the lock. Otherwise the first process takes it.
    takes_lock = events != "json" and os.environ.get("RANK", "0") == "0"
    in_use = loaded.slot.in_use() if events == "json" else nullcontext()
    on_wait = partial(_log, send, loaded.stage.name)
    try:
        with loaded.slot.lock(on_wait) if takes_lock else in_use:
            if takes_lock and loaded.status == "cached":
                raise UserError(f"{loaded.slot.name} is already finished: another run made it")
            run_step(loaded, send)
    except (UserError, OSError) as error:
        if events == "json":
            message = "\n".join(error_messages(error))
            send(Event("run_failed", loaded.stage.name, {"message": message}))
        raise
    if events != "json":
        show(f"{loaded.slot.name} after {time.monotonic() - begun:.0f} s")


def _into_pipe() -> Send:
    """Write events to the standard output, and redirect any other output to the standard error.

    So the output of a library, or of a process that it starts, cannot mix with the events. The listeners of plugins
    receive the events in the process of the run.
    """
    sys.stdout.flush()
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    end_without_reader(pipe.fileno())
    return PipeListener(pipe).vfm_event


def _log(send: Callable[[Event], None], stage: str, message: str) -> None:
    send(Event("log", stage, {"message": message}))


@command
def init(
    path: Annotated[Path, typer.Argument(readable=False, help="File to write.")] = Path("recipe.yaml"),
    like: Annotated[
        str, typer.Option(help="Shipped recipe to copy.", autocompletion=completion.shipped_recipes)
    ] = "pairs",
    debug: DebugOption = False,
) -> None:
    """Copy a shipped recipe as a start for your own.

    Its first line names the schema that is written next to it, for completion and checks in editors.
    """
    if path.exists():
        raise UserError(f"{path} already exists; choose another name, or remove it first")
    text = read_text(find_recipe(like))
    schema = json.dumps(json_schema(stage_types(load_plugins())), indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{SCHEMA_LINE}{SCHEMA_FILE}\n{text}", encoding="utf-8")
    schema_file = path.with_name(SCHEMA_FILE)
    schema_file.write_text(schema + "\n", encoding="utf-8")
    show(f"wrote {schema_file}, by which editors complete and check fields; `vfm schema` prints it again")
    show(f"wrote {path} (from '{like}'; vfm recipes: the others); run it with: vfm run {shlex.quote(str(path))}")
