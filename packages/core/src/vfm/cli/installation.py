"""The commands `stages`, `plugins`, `schema` and `doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vfm.api.doctor import run_checks
from vfm.base import UserError, load_function
from vfm.cli.command import DEFAULT_STORE, DebugOption, StoreOption, command, console, show
from vfm.cli.fields.field_table import FieldRow, field_rows, overview, rows_of
from vfm.cli.terminal import completion
from vfm.flow.looks.facts import Look
from vfm.flow.recipe.schema import json_schema
from vfm.interfaces import load_plugins, origin_of, stage_types, unknown_kind


@command
def stages(
    kind: Annotated[
        str | None, typer.Argument(help="Show the fields of this kind of stage.", autocompletion=completion.kinds)
    ] = None,
    field: Annotated[str | None, typer.Argument(help="Show this field, or group of fields, in full.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Show every nested field in full.")] = False,  # noqa: A002
    debug: DebugOption = False,
) -> None:
    """List the installed kinds of stages, or the fields of a kind.

    Required fields come first, then the others by group.
    """
    known = stage_types(load_plugins())
    if kind is None:
        table = Table("kind", "makes", "description", box=None)
        for name, stage in known.items():
            table.add_row(name, stage.makes.__name__, (stage.__doc__ or "").strip().split("\n", 1)[0])
        console.print(table)
        return
    if kind not in known:
        raise UserError(unknown_kind(kind, known))
    if field:
        _print_fields(rows_of(known[kind], field))
        return
    about = f"{kind}: {(known[kind].__doc__ or '').strip()}\n"
    console.print(about if all else about.split("\n", 1)[0], highlight=False, markup=False)
    if all:
        _print_fields(list(field_rows(known[kind])))
        return
    for line in overview(known[kind], console.width):
        show(line)
    show(f"\nA group in full: vfm stages {kind} FIELD. Every field: vfm stages {kind} --all")


def _print_fields(rows: list[FieldRow]) -> None:
    """Print fields with types and whole descriptions."""
    table = Table("field", "type", "default", "description", box=None)
    for row in rows:
        if row.heading:
            table.add_row()
        table.add_row(*map(escape, row.cells), style="bold" if row.heading else None)
    console.print(table)


@command
def plugins(debug: DebugOption = False) -> None:
    """List the installed plugins, with their hooks and stages."""
    manager = load_plugins()
    known = stage_types(manager)
    table = Table("plugin", "package", "hooks", "stages", box=None)
    for name, plugin in manager.list_name_plugin():
        if plugin is None:
            continue
        hooks = [caller.name for caller in manager.get_hookcallers(plugin) or []]
        kinds = [kind for kind in known if known.plugin_of(kind) == name]
        table.add_row(name, origin_of(manager, name), ", ".join(hooks), ", ".join(kinds))
    console.print(table)


@command
def schema(debug: DebugOption = False) -> None:
    """Print the JSON Schema of recipes, for editors."""
    fields = json_schema(stage_types(load_plugins()))
    typer.echo(json.dumps(fields, indent=1))


@command
def doctor(
    path: Annotated[
        str | None, typer.Argument(help="Any file or folder: data, a model, a recipe. Default: the installation.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    debug: DebugOption = False,
) -> None:
    """Inspect a file or folder, or check the installation.

    For a path it also suggests the next command. `vfm PATH` does the same. It reads the first 1,000 samples of a
    dataset, and `vfm data PATH` reads all.
    """
    if path is not None:
        _show_look(path)
        return
    failed = False
    for passed, check, detail in run_checks(store):
        failed |= not passed
        mark = "[green]✓[/]" if passed else "[red]✗[/]"
        console.print(f"{mark} {check:<12} {escape(detail)}", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(2)


def _show_look(path: str) -> None:
    look_at = load_function("vfm.flow.looks.look:look_at")  # imports `vfm.data`
    with TemporaryDirectory() as folder:
        look: Look = look_at(path, stage_types(load_plugins()), Path(folder), lambda event: None)
    show(f"{path}: {look.format}")
    for fact in look.facts:
        show(f"  {fact}")
    for problem in look.problems:
        show(f"wrong: {problem}")
    for line in look.commands:
        show(f"next: {line}")
    if look.problems and not look.commands:
        raise typer.Exit(2)
