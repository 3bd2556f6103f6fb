"""Verbs that look at things: stages, plugins, show, schema, report, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vfm.artifacts import Artifact
from vfm.cli.command import DEFAULT_STORE, DebugOption, StoreOption, console, show_results, verb
from vfm.cli.type_words import field_rows
from vfm.config import UserError
from vfm.flow.recipe import json_schema
from vfm.flow.store import MANIFEST_FILE, Store, read_record
from vfm.plugins import load_plugins, origin_of, stage_types, unknown_kind


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
        raise UserError(unknown_kind(kind, known))
    table = Table("field", "type", "default", "meaning", box=None)
    for row in sorted(field_rows(known[kind]), key=lambda row: row[0].startswith("runtime")):  # last: all have it
        table.add_row(*map(escape, row))
    console.print(f"{kind}: {(known[kind].__doc__ or '').strip()}\n", highlight=False)
    console.print(table)


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
def show(
    artifact: Annotated[Path, typer.Argument(readable=False, help="An artifact's folder.")], debug: DebugOption = False
) -> None:
    """Show an artifact: its facts, where it comes from, its files."""
    stage_types(load_plugins())
    found, folder = Artifact.load(artifact), artifact.resolve()
    manifest = read_record(folder / MANIFEST_FILE) if (folder / MANIFEST_FILE).is_file() else None
    console.print(f"[bold]{type(found).__name__}[/] {escape(str(folder))}", highlight=False, soft_wrap=True)
    console.print_json(found.model_dump_json())
    if manifest is not None:
        console.print_json(data=manifest)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = escape(str(file.relative_to(folder)))
        console.print(f"{file.stat().st_size:>14,}  {name}", highlight=False, soft_wrap=True)


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
    show_results(directory)
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
