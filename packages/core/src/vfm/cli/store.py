"""The commands `show`, `runs`, `report` and `clean`."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vfm.base import UserError, load_function, redacted
from vfm.cli.command import (
    DEFAULT_STORE,
    DebugOption,
    StoreOption,
    command,
    console,
    note,
    show as show_line,
    show_results,
)
from vfm.cli.terminal import completion
from vfm.flow.plan.store import Slot, Store
from vfm.flow.records.cleaning import abandoned_slots, no_run_starts, older_runs, unused_slots
from vfm.flow.records.runs import find_run
from vfm.interfaces import MANIFEST_FILE, Artifact
from vfm.report import REPORT_FILE
from vfm.storage.integrity import read_sealed

MAX_NAMES = 20  # number of runs in a message


@command
def show(
    artifact: Annotated[Path, typer.Argument(readable=False, help="Folder of an artifact.")],
    debug: DebugOption = False,
) -> None:
    """Show the facts, the settings and the files of an artifact."""
    loaded = Artifact.load(artifact)
    folder = artifact.resolve()
    if (folder / MANIFEST_FILE).is_file():
        manifest = read_sealed(folder / MANIFEST_FILE)
    else:
        manifest = None
    console.print(f"[bold]{type(loaded).__name__}[/] {escape(str(folder))}", highlight=False, soft_wrap=True)
    console.print_json(data=redacted(loaded.model_dump(mode="json")))
    if manifest is not None:
        console.print_json(data=redacted(manifest))
    for file in sorted(filter(Path.is_file, folder.rglob("*"))):
        show_line(f"{file.stat().st_size:>14,}  {file.relative_to(folder)}")


@command
def runs(store: StoreOption = DEFAULT_STORE, debug: DebugOption = False) -> None:
    """List the runs of a store, with their state and command.

    A line has the start, the seconds of a finished run or the state of another, the recipe and the command.
    """
    listed = load_function("vfm.api.listings:list_runs")(store=store).rows  # imports pyarrow
    width = max((len(row[0]) for row in listed), default=0)
    for name, started, state, seconds, recipe, words in listed:
        shown = state if seconds is None else f"{seconds:,.0f} s"
        show_line(f"{name:<{width}}  {started:<16}  {shown:>9}  {f'{recipe}  {words}'.rstrip()}".rstrip())
    if not listed:
        show_line(f"no runs in {store}")


@command
def report(
    run: Annotated[
        list[str],
        typer.Argument(
            help="Recipe or its name, NAME@NUMBER as `vfm runs` lists it, or folder; several are compared.",
            autocompletion=completion.runs,
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; default: report.html in the run's folder, or comparison.html here."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow a run: draw its page, which reloads itself until the run ends.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Redraw the report of a run and show it, or compare runs.

    For an unfinished run, the page has the finished stages and the curves of the others so far.
    """
    if watch:
        watch_run(run, store, out)
        return
    from vfm.api.reports import draw_report, find_directory  # imports pyarrow

    page = draw_report(run, store=store, out=out, warn=note)
    if len(run) > 1:
        show_line(f"comparison: {page}")
        return
    show_results(find_directory(run[0], store))
    show_line(f"report: {page}")


def watch_run(words: list[str], store: Path, out: Path | None) -> None:
    """Draw the page of a run until it ends, then show its results.

    Raises:
        UserError: If there is no such run, several were given, or the run failed or was killed.
    """
    if len(words) > 1:
        raise UserError(f"--watch: expected one run, got {len(words)}")
    directory = find_run(words[0], Store(store))
    if directory is None:
        raise UserError(f"no run {words[0]!r} in {store}; start it in another terminal, then watch it")
    from vfm.api.reports import page_file
    from vfm.report.live import watch

    page = page_file(out, directory / REPORT_FILE)
    show_line(f"watching {directory.name}: open {page.absolute().as_uri()}; Ctrl-C ends")
    watch(directory.resolve(), page)
    show_results(directory)
    show_line(f"report: {page}")


@command
def clean(
    store: StoreOption = DEFAULT_STORE,
    keep_runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Also remove the runs of each name that are older than its last N finished ones. Default: keep all."
            " Failed runs do not count, and running ones are kept.",
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Also remove the checkpoints of unfinished runs if the same recipe was run again later.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    debug: DebugOption = False,
) -> None:
    """Remove artifacts and partial results that no run uses."""
    if not store.is_dir():
        raise UserError(f"{store}: no such folder; give the folder of artifacts and runs with --store")
    with nullcontext() if dry_run else no_run_starts(Store(store)):
        _clean(Store(store), keep_runs, partial=partial, dry_run=dry_run)


def _clean(store: Store, keep_runs: int | None, *, partial: bool, dry_run: bool) -> None:
    old = older_runs(store, keep_runs) if keep_runs else []
    without = {run.directory for run in old}
    slots = unused_slots(store, without)
    abandoned = [slot for slot in abandoned_slots(store, without) if slot not in slots]
    verb = "would remove" if dry_run else "removed"
    for run in old:
        if not dry_run:
            shutil.rmtree(run.directory)
        show_line(f"{verb} run {run.directory.name}")
    for slot in [*slots, *abandoned] if partial else slots:
        size = _megabytes(slot)
        if not dry_run:
            slot.discard()
        show_line(f"{verb} {slot.name} ({size:,.1f} MB)")
    if not (slots or old or (partial and abandoned)):
        show_line("nothing to remove: every artifact belongs to a run")
    if abandoned and not partial:
        size = sum(map(_megabytes, abandoned))
        show_line(f"unfinished runs that others followed have {size:,.1f} MB of partial results: remove with --partial")


def _megabytes(slot: Slot) -> float:
    return sum(map(_bytes_in, slot.folders)) / 1e6


def _bytes_in(folder: str | os.PathLike[str]) -> int:
    """Sum the sizes of the files below a folder. Links are not followed."""
    size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            size += _bytes_in(entry.path) if is_folder else entry.stat(follow_symlinks=False).st_size
    return size
