"""The command verify."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from vfm.base import UserError, how_to_install, load_function
from vfm.cli.command import DEFAULT_STORE, DebugOption, StoreOption, command, console, show, show_results
from vfm.flow.plan.store import Store
from vfm.flow.records.input_changes import InputCheck, OutsideInput, behind, inputs_of
from vfm.flow.records.proof import proof_of
from vfm.flow.records.runs import hash_of_record, kept_runs
from vfm.flow.records.verification import Place, damaged_records, places
from vfm.report import changed_page


class Read:
    """Counts the bytes that were read, and shows them as a bar on a terminal."""

    def __init__(self, bar: Progress, total: int) -> None:
        self.bar = bar
        self.task = bar.add_task("reading", total=total)
        self.lock = Lock()
        self.count = 0
        self.begun = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes. Several threads may call it."""
        with self.lock:
            self.count += count
        self.bar.advance(self.task, count)

    @property
    def rate(self) -> str:
        """Bytes, seconds and bytes per second, as text."""
        # A clock may not advance between two calls.
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
    folder: Annotated[
        Path | None, typer.Argument(readable=False, show_default=False, help="The store, or one of its artifacts.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    inputs: Annotated[
        bool,
        typer.Option(
            "--inputs", help="Instead, read every byte of the files outside the store that results were made from."
        ),
    ] = False,
    root: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Prove a result: compare everything that this hash of a run or root of an artifact commits to, from"
            " the bytes of the outside files to the report.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(readable=False, show_default=False, help="Public key that must have signed the hash of --root."),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            show_default=False,
            help="Private ed25519 key that signs the hash of --root once it is proven.",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Read a store and find what is damaged; the exit code is then 2.

    The size and the SHA-256 of every file are compared with its manifest or checkpoint, and runs with their records.
    """
    place = folder or store
    if root is not None:
        problems = _prove(place, root, key, sign)
    elif key or sign:
        raise UserError(f"--{'key' if key else 'sign'}: expected --root HASH with it")
    else:
        problems = _verify_inputs(place) if inputs else _verify_files(place)
    if problems:
        raise UserError("\n".join(problems))


def _verify_files(store: Path) -> list[str]:
    folders = places(store)
    table = Table("folder", "files", "bytes", "state", box=None)
    problems = list(damaged_records(store))
    num_files = 0
    with _reading(_num_bytes(folders)) as read:
        for checked in folders:
            lines = checked.verify(read.add)
            problems += lines
            if lines:
                state = f"[red]damaged: {len(lines)}[/]"
            else:
                state = checked.state.replace("good", "[green]good[/]")
            if checked.folder != store:
                name = checked.folder.relative_to(store)
            else:
                name = checked.folder
            num_files += checked.num_files
            table.add_row(escape(str(name)), f"{checked.num_files:,}", f"{checked.num_bytes:,}", state)
    console.print(table)
    for run in kept_runs(Store(store)) if (store / "runs").is_dir() else ():
        if run.record.get("roots"):
            show(f"{run.directory.name}  {hash_of_record(run.directory)}")
    show(f"{num_files:,} files, {read.rate}; {len(problems)} damaged")
    return problems


def _num_bytes(folders: Iterable[Place]) -> int:
    return sum(folder.num_bytes for folder in folders)


def _prove(store: Path, digest: str, key: Path | None, sign: Path | None) -> list[str]:
    places(store)  # raises if it is not a folder of artifacts
    proof = proof_of(store, digest)
    sign_root = _signing("sign_root") if sign else None
    if key:
        _signing("check_signature")(store, digest, key)
        show(f"signed by {key}")
    problems = list(proof.problems)
    show(f"{proof.name}: {digest}")
    num_files = 0
    with _reading(_num_bytes(proof.artifacts)) as read:
        for artifact in proof.artifacts:
            problems += artifact.verify(read.add)
            num_files += artifact.num_files
    show(f"{len(proof.artifacts):,} artifacts, {num_files:,} files, {read.rate}")
    problems += _compare_inputs(store, proof.inputs)
    if proof.run:
        problems += [] if problems else changed_page(proof.run)
        if not problems:
            show_results(proof.run)
    if sign_root and not problems:
        show(f"signature: {sign_root(store, digest, sign)}")
    show(f"not proven: {len(problems)} of its parts differ" if problems else "proven")
    return problems


def _signing(function: str) -> Callable[..., Any]:
    """Load a function of `signatures`, which imports cryptography, an optional extra."""
    try:
        return load_function(f"vfm.flow.records.signatures:{function}")
    except ImportError:
        raise UserError(f"--key and --sign need cryptography: {how_to_install('vfm-core[sign]')}") from None


def _verify_inputs(store: Path) -> list[str]:
    places(store)  # raises if it is not a folder of artifacts
    return _compare_inputs(store, inputs_of(store))


def _compare_inputs(store: Path, outside: Sequence[OutsideInput]) -> list[str]:
    check = InputCheck(store)
    table = Table("input", "files", "state", "behind", box=None)
    problems = []
    sizes = []
    for source in outside:
        sizes.append(sum(Path(file).stat().st_size for file in source.files))
    with _reading(sum(sizes)) as read:
        for source in outside:
            change = check.check(source, read.add)
            if change:
                problems.append(f"{source.path}: {change}; behind {behind(source)}")
            state = "same" if source.files else "not read"
            if change:
                state = "[red]changed[/]"
            table.add_row(escape(source.path), f"{len(source.files):,}", state, behind(source))
    # Hashes of large files are kept, so that the next check reads only changed ones.
    check.save()
    if outside:
        console.print(table)
    if check.recorded:
        new = f"; of {check.recorded} large files the SHA-256 is recorded only now"
    else:
        new = ""
    noun = "input" if len(outside) == 1 else "inputs"
    show(f"{len(outside):,} {noun}, {read.rate}; {len(problems)} changed{new}")
    return problems
