"""The command `vfm`: one verb each, one line for a mistake, exit code 2 for what the user can mend."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import pluggy
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vfm.config import UserError
from vfm.events import Event
from vfm.flow.listeners import ConsoleListener, JsonLinesListener, PipeListener, TensorBoardListener, sender
from vfm.flow.plan import Step, make_plan
from vfm.flow.recipe import SHIPPED, Recipe, json_schema, load_recipe
from vfm.flow.store import Store
from vfm.plugins import extra_of, load_plugins, origin_of, stage_types

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None
)
console = Console(width=None if sys.stdout.isatty() else 120)  # a log file has no width of its own
errors = Console(stderr=True)

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships with vfm.")]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder of artifacts and runs.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME.FIELD=VALUE", help="Override a field of a stage.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DEFAULT_STORE = Path("store")


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose mistakes are told in lines, with exit code 2 (130 when interrupted)."""

    @wraps(function)
    def command(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except KeyboardInterrupt:
            errors.print("\nstopped; the same command goes on where this one stopped")
            raise typer.Exit(130) from None
        except SystemExit as stop:
            if str(stop) != str(stop.code):  # a training that was told to stop says where it goes on
                errors.print(escape(str(stop)), highlight=False, soft_wrap=True)
            raise
        except BrokenPipeError:
            raise  # the reader of our output has left (`vfm schema | head`): typer ends quietly
        except (UserError, OSError, ModuleNotFoundError) as error:
            if options.get("debug") or not (lines := _lines(error)):
                raise
            for line in lines:
                errors.print(f"[red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None

    return app.command()(command)


def _lines(error: UserError | OSError | ModuleNotFoundError) -> list[str]:
    """What to say of a mistake; nothing where it is ours."""
    if isinstance(error, UserError):
        return str(error).splitlines()
    if isinstance(error, ModuleNotFoundError):
        extra = extra_of(error.name or "")
        return [f"this needs {error.name}: pip install 'vfm-core[{extra}]'"] if extra else []
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return [f"{where}no space left on the disk; finished artifacts are whole, free some space and run again"]
    return [f"{where}{error.strerror or error}"]


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
    from vfm.flow import report
    from vfm.flow import run as runner

    manager, loaded, steps = _plan(recipe, store, set)
    directory = Store(store).run_directory(loaded.name)
    with ExitStack() as opened:
        send = sender(manager, _listeners(directory, opened, quiet=quiet, tensorboard=tensorboard))
        try:
            if prepare:
                _prepare(loaded, steps, prepare, send, Store(store))
                return
            outcome = runner.run(loaded, steps, Store(store), send, fresh=fresh)
        except BaseException as error:
            with suppress(OSError):  # on a full disk, what went wrong is worth more than that it cannot be noted
                send(Event("run_failed", None, {"message": str(error) or type(error).__name__}))
            raise
        try:
            page = str(report.current_report(outcome.directory))
        except UserError as error:  # the results are there: a page that cannot be drawn does not make the run fail
            page = f"not drawn ({error})"
        send(Event("run_finished", None, {"seconds": round(outcome.seconds, 2), "report": page}))
    if not quiet:
        _show_results(outcome.directory)
        console.print(f"{outcome.seconds:.0f} s   report: {page}", highlight=False, soft_wrap=True)


def _listeners(directory: Path, opened: ExitStack, *, quiet: bool, tensorboard: bool) -> list[Any]:
    """The listeners of a run, closed with `opened`."""
    from vfm.flow.run import EVENTS_FILE

    listeners: list[Any] = [ConsoleListener(console, quiet=quiet), JsonLinesListener(directory / EVENTS_FILE)]
    if tensorboard:
        listeners.append(TensorBoardListener(directory / "tensorboard"))
    for listener in listeners:
        opened.callback(listener.close)
    return listeners


def _prepare(recipe: Recipe, steps: list[Step], name: str, send: Callable[[Event], None], store: Store) -> None:
    from vfm.flow import launch
    from vfm.flow import run as runner

    index = next((i for i, step in enumerate(steps) if step.stage.name == name), None)
    if index is None:
        raise UserError(f"--prepare {name}: no stage has this name; stages: {', '.join(s.stage.name for s in steps)}")
    if steps[index].status == "cached":
        raise UserError(f"--prepare {name}: {steps[index].slot.name} is there already, nothing is left to prepare")
    runner.run(recipe, steps, store, send, before=steps[index])
    work = launch.write_step(steps[index])
    console.print(f"prepared; on every node: torchrun ... -m vfm step {work}", highlight=False, soft_wrap=True)


def _show_results(directory: Path) -> None:
    from vfm.flow.results import result_tables

    for table in result_tables(directory):
        console.print(table)


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
    directory: Annotated[Path, typer.Argument(help="A prepared work folder (`vfm run --prepare`).")],
    events: Annotated[str, typer.Option(help="text, or json: events as JSON lines on standard output.")] = "text",
    debug: DebugOption = False,
) -> None:
    """Run one prepared stage, under torchrun or a scheduler; the first process publishes the artifact."""
    from vfm.flow.launch import StepFile, run_step

    manager = load_plugins()
    send = sender(manager, [PipeListener() if events == "json" else ConsoleListener(console)])
    loaded = StepFile.load(directory, stage_types(manager))
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
            send(Event("run_failed", loaded.stage.name, {"message": "\n".join(_lines(error))}))
        raise
    if events != "json":
        console.print(f"{loaded.slot.name} after {time.time() - begun:.0f} s", highlight=False)


def _tell(send: Callable[[Event], None], stage: str, message: str) -> None:
    send(Event("log", stage, {"message": message}))


@verb
def stages(
    kind: Annotated[str | None, typer.Argument(help="Show the fields of this kind.")] = None, debug: DebugOption = False
) -> None:
    """List the stages that are installed, or the fields of one."""
    known = stage_types(load_plugins())
    if kind is None:
        table = Table("kind", "makes", "what it is for", box=None)
        for name, stage in known.items():
            table.add_row(name, stage.makes.__name__, (stage.__doc__ or "").strip().splitlines()[0])
        console.print(table)
        return
    if kind not in known:
        from vfm.plugins import unknown_kind

        raise UserError(unknown_kind(kind, known))
    table = Table("field", "type", "default", "meaning", box=None)
    for name, field in known[kind].model_fields.items():
        default = "required" if field.is_required() else escape(str(field.get_default(call_default_factory=True)))
        table.add_row(name, escape(_type_name(field.annotation)), default, escape(field.description or ""))
    console.print(f"{kind}: {(known[kind].__doc__ or '').strip()}\n", highlight=False)
    console.print(table)


def _type_name(annotation: Any) -> str:
    import re

    name = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    return re.sub(r"\b(typing|pathlib|vfm)(\.\w+)*\.", "", name).replace("NoneType", "None")


@verb
def plugins(debug: DebugOption = False) -> None:
    """List the installed plugins and what each brings."""
    manager = load_plugins()
    table = Table("plugin", "package", "hooks", "stages", box=None)
    for name, plugin in manager.list_name_plugin():
        if plugin is None:
            continue
        hooks = [caller.name for caller in manager.get_hookcallers(plugin) or []]
        kinds = [stage.kind_name() for stage in getattr(plugin, "vfm_stages", list)()]
        table.add_row(name, origin_of(manager, name), ", ".join(hooks), ", ".join(kinds))
    console.print(table)


@verb
def show(artifact: Annotated[Path, typer.Argument(help="An artifact's folder.")], debug: DebugOption = False) -> None:
    """Show an artifact: its facts, where it comes from, its files."""
    from vfm.artifacts import Artifact
    from vfm.flow.store import MANIFEST_FILE

    stage_types(load_plugins())
    found = Artifact.load(artifact)
    console.print(f"[bold]{type(found).__name__}[/] {artifact.resolve()}", highlight=False)
    console.print_json(found.model_dump_json())
    manifest = artifact / MANIFEST_FILE
    if manifest.is_file():
        console.print_json(manifest.read_text(encoding="utf-8"))
    for file in sorted(path for path in artifact.resolve().rglob("*") if path.is_file()):
        console.print(f"{file.stat().st_size:>14,}  {file.relative_to(artifact.resolve())}", highlight=False)


@verb
def schema(debug: DebugOption = False) -> None:
    """Print the JSON Schema of recipes, for editors."""
    typer.echo(json.dumps(json_schema(stage_types(load_plugins())), indent=1))


@verb
def report(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the folder of a run.")],
    store: StoreOption = DEFAULT_STORE,
    debug: DebugOption = False,
) -> None:
    """Draw the report of a run again, and show its results."""
    from vfm.flow.report import report_of_run
    from vfm.flow.run import RUN_FILE

    stage_types(load_plugins())
    directory = Path(recipe) if (Path(recipe) / RUN_FILE).is_file() else Store(store).run_directory(Path(recipe).stem)
    if not (directory / RUN_FILE).is_file():
        runs = sorted(path.parent.name for path in (store / "runs").glob(f"*/{RUN_FILE}"))
        raise UserError(f"no finished run {recipe!r} in {store}; there are: {', '.join(runs) or 'none'}")
    page = report_of_run(directory)
    _show_results(directory)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


@verb
def doctor(store: StoreOption = DEFAULT_STORE, debug: DebugOption = False) -> None:
    """Check this machine: packages, devices, disk, permission to write."""
    from vfm.flow.doctor import findings

    failed = False
    for fine, what, detail in findings(store):
        failed |= not fine
        console.print(
            f"{'[green]✓[/]' if fine else '[red]✗[/]'} {what:<12} {escape(detail)}", highlight=False, soft_wrap=True
        )
    if failed:
        raise typer.Exit(2)


@verb
def clean(
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    debug: DebugOption = False,
) -> None:
    """Remove artifacts that no run links to, and what was left of making them."""
    slots = Store(store).unlinked()
    for slot in slots:
        size = sum(file.stat().st_size for path in slot.folders for file in path.rglob("*") if file.is_file())
        if not dry_run:
            slot.discard()
        console.print(f"{'would remove' if dry_run else 'removed'} {slot.name} ({size / 1e6:,.1f} MB)", highlight=False)
    if not slots:
        console.print("nothing to remove: every artifact belongs to a run")


@verb
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("recipe.yaml"),
    like: Annotated[str, typer.Option(help="The shipped recipe to start from.")] = "pairs",
    debug: DebugOption = False,
) -> None:
    """Write a commented recipe to start from."""
    from vfm.flow.recipe import find_recipe

    if path.exists():
        raise UserError(f"{path} is there already; give another name, or remove it first")
    shutil.copyfile(find_recipe(like), path)
    known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
    console.print(f"wrote {path} (from '{like}'; there are: {known}); run it with: vfm run {path}", highlight=False)


def main() -> None:
    """Entry point."""
    app(prog_name="vfm")
    sys.exit(0)
