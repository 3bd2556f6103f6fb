"""Commands for the store: show, report, clean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vfm.artifacts import Artifact
from vfm.cli.command import DEFAULT_STORE, DebugOption, StoreOption, command, console, show_results
from vfm.cli.command import show as show_line
from vfm.config import UserError
from vfm.flow.report import report_of_run
from vfm.flow.run import RUN_FILE
from vfm.flow.store import MANIFEST_FILE, Store
from vfm.plugins import load_plugins, stage_types
from vfm.store_files import read_record


@command
def show(
    artifact: Annotated[Path, typer.Argument(readable=False, help="Folder of an artifact.")],
    debug: DebugOption = False,
) -> None:
    """Show an artifact: its facts, how it was made, its files."""
    stage_types(load_plugins())  # imports the artifact types of plugins
    found, folder = Artifact.load(artifact), artifact.resolve()
    manifest = read_record(folder / MANIFEST_FILE) if (folder / MANIFEST_FILE).is_file() else None
    console.print(f"[bold]{type(found).__name__}[/] {escape(str(folder))}", highlight=False, soft_wrap=True)
    console.print_json(found.model_dump_json())
    if manifest is not None:
        console.print_json(data=manifest)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        show_line(f"{file.stat().st_size:>14,}  {file.relative_to(folder)}")


@command
def report(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or folder of a run.")],
    store: StoreOption = DEFAULT_STORE,
    debug: DebugOption = False,
) -> None:
    """Draw the report of a finished run again, and show its results."""
    stage_types(load_plugins())
    directory = Path(recipe) if (Path(recipe) / RUN_FILE).is_file() else Store(store).run_directory(Path(recipe).stem)
    if not (directory / RUN_FILE).is_file():
        runs = sorted(path.parent.name for path in (store / "runs").glob(f"*/{RUN_FILE}"))
        raise UserError(f"no finished run {recipe!r} in {store}; finished runs: {', '.join(runs) or 'none'}")
    page = report_of_run(directory)
    show_results(directory)
    show_line(f"report: {page}")


@command
def clean(
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    debug: DebugOption = False,
) -> None:
    """Remove artifacts and partial results that no run links to."""
    if not store.is_dir():
        raise UserError(f"{store}: no such folder; give the folder of artifacts and runs with --store")
    slots = Store(store).unlinked()
    for slot in slots:
        size = sum(file.stat().st_size for path in slot.folders for file in path.rglob("*") if file.is_file())
        if not dry_run:
            slot.discard()
        console.print(f"{'would remove' if dry_run else 'removed'} {slot.name} ({size / 1e6:,.1f} MB)", highlight=False)
    if not slots:
        console.print("nothing to remove: every artifact belongs to a run")
