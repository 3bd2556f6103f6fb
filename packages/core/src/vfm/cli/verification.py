"""The command verify."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from vfm.base import UserError
from vfm.cli.command import DEFAULT_STORE, DebugOption, command, console, show
from vfm.flow.records.input_changes import InputCheck, behind, inputs_of
from vfm.flow.records.verification import damaged_records, places


class Read:
    """Counts the bytes that were read, and shows them as a bar on a terminal."""

    def __init__(self, bar: Progress, total: int) -> None:
        self.bar, self.task, self.lock = bar, bar.add_task("reading", total=total), Lock()
        self.count, self.begun = 0, time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes; several threads may call it."""
        with self.lock:
            self.count += count
        self.bar.advance(self.task, count)

    @property
    def rate(self) -> str:
        """Bytes, seconds and bytes a second."""
        seconds = max(1e-9, time.monotonic() - self.begun)
        return f"{self.count:,} bytes in {seconds:.1f} s ({self.count / seconds / 1e6:,.0f} MB/s)"


@contextmanager
def _reading(total: int) -> Iterator[Read]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        yield Read(bar, total)


@command
def verify(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of artifacts and runs.")] = DEFAULT_STORE,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="Read the outside files behind the results instead, every byte.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Read a store and find what is damaged; the exit code is then 2.

    The size and the SHA-256 of every file are compared with those in the manifests and checkpoints.
    """
    problems = _verify_inputs(store) if inputs else _verify_files(store)
    if problems:
        raise UserError("\n".join(problems))


def _verify_files(store: Path) -> list[str]:
    found = places(store)
    table = Table("folder", "files", "bytes", "state", box=None)
    problems = list(damaged_records(store))
    with _reading(sum(place.num_bytes for place in found)) as read:
        for place in found:
            lines = place.verify(read.add)
            problems += lines
            state = (
                f"[red]damaged: {len(lines)}[/]" if lines else "not hashed" if place.known is None else "[green]good[/]"
            )
            name = place.folder.relative_to(store) if place.folder != store else place.folder
            table.add_row(escape(str(name)), f"{len(place.known or ()):,}", f"{place.num_bytes:,}", state)
    console.print(table)
    show(f"{sum(len(place.known or ()) for place in found):,} files, {read.rate}; {len(problems)} damaged")
    return problems


def _verify_inputs(store: Path) -> list[str]:
    places(store)  # is it a folder?
    found, check = inputs_of(store), InputCheck(store)
    table = Table("input", "files", "state", "behind", box=None)
    problems = []
    sizes = [sum(Path(file).stat().st_size for file in one.files) for one in found]
    with _reading(sum(sizes)) as read:
        for one in found:
            change = check.check(one, read.add)
            if change:
                problems.append(f"{one.path}: {change}; behind {behind(one)}")
            state = "[red]changed[/]" if change else "same" if one.files else "not read"
            table.add_row(escape(one.path), f"{len(one.files):,}", state, behind(one))
    check.save()
    if found:
        console.print(table)
    new = f"; of {check.recorded} large files the SHA-256 is recorded only now" if check.recorded else ""
    show(f"{len(found):,} input{'' if len(found) == 1 else 's'}, {read.rate}; {len(problems)} changed{new}")
    return problems
