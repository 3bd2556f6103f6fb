"""Verification of a store: its artifacts, checkpoints and records are read and compared with their hashes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vfm.base import UserError
from vfm.flow.plan.store import LINKS, SLOT_NAME, Store
from vfm.flow.records.runs import EVENTS_FILE, RUN_FILE, KeptRun, kept_runs
from vfm.interfaces import MANIFEST_FILE, damaged_lines
from vfm.storage.fingerprints import FINGERPRINTS_PATTERN
from vfm.storage.integrity import Known, damage, known_files, read_sealed

META_FILE = "meta.json"  # record of a checkpoint
# Keys that every version has written.
RECORD_KEYS = {MANIFEST_FILE: ("kind", "identity", "inputs"), META_FILE: ("step",), RUN_FILE: ("recipe", "seconds")}
CHECKPOINTS = ".*.work/**/step-[0-9]*"


@dataclass(frozen=True)
class Place:
    """A folder to verify: an artifact, or a checkpoint of an unfinished training stage.

    Attributes:
        folder: the folder.
        known: sizes and hashes of its files; None: it is of an older version, without hashes.
        problems: problems found before reading the files, one line each.
    """

    folder: Path
    known: Known | None
    problems: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Number of bytes to read."""
        return sum(size for size, _ in (self.known or {}).values())

    def verify(self, on_bytes: Callable[[int], None]) -> list[str]:
        """Read all files and list the problems, one line each. `on_bytes` is called with the bytes of each block."""
        return [*self.problems, *damage(self.folder, self.known or {}, on_bytes)]


def places(store: Path) -> list[Place]:
    """List the artifacts and checkpoints of a store, or the artifact itself if the folder is an artifact.

    Raises:
        UserError: If there is no such folder, or it has neither artifacts nor runs.
    """
    if not store.is_dir():
        raise UserError(f"{store}: no such folder; expected a folder of artifacts and runs")
    if (store / MANIFEST_FILE).is_file():
        return [_place(store, MANIFEST_FILE)]
    artifacts = [path for path in store.iterdir() if SLOT_NAME.fullmatch(path.name) and path.is_dir()]
    checkpoints = [path for path in store.glob(CHECKPOINTS) if path.is_dir()]
    if not (artifacts or checkpoints or os.path.lexists(Store(store).runs)):
        raise UserError(f"{store}: expected a folder of artifacts and runs, got one with neither")
    listed = [_place(path, MANIFEST_FILE) for path in sorted(artifacts)]
    return [*listed, *(_place(path, META_FILE) for path in sorted(checkpoints))]


def _place(folder: Path, record_file: str) -> Place:
    file = folder / record_file
    try:
        record = read_sealed(file, *RECORD_KEYS[record_file])
        identity = str(record.get("identity", ""))
        problems = []
        if SLOT_NAME.fullmatch(folder.name) and identity and not folder.name.endswith(f"-{identity[:8]}"):
            problems.append(f"{file}: expected an identity that begins with {folder.name[-8:]}, got {identity}")
        return Place(folder, known_files(record, file), tuple(problems))
    except UserError as error:
        return Place(folder, {}, (str(error),))


def damaged_records(store: Path) -> Iterator[str]:
    """Yield a line for each damaged file of the runs, and of the cached fingerprints."""
    records = [run.directory / RUN_FILE for run in kept_runs(Store(store))]
    for file in sorted([*records, *store.glob(FINGERPRINTS_PATTERN)]):
        try:
            read_sealed(file, *RECORD_KEYS.get(file.name, ()))
        except UserError as error:
            yield str(error)
    for run in kept_runs(Store(store)):
        yield from _lost(run)
    for file in sorted(store.glob(f"runs/*@*/{EVENTS_FILE}")):
        if not file.is_file():
            yield f"{file}: expected a regular file"
            continue
        with file.open("rb") as lines:
            numbers = damaged_lines(lines)
        if numbers:
            more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
            yield f"{file}: line {numbers[0]}{more}: not as it was written"


def _lost(run: KeptRun) -> Iterator[str]:
    """Yield a line for each stage of a finished run whose artifact is missing."""
    stages = run.record.get("stages") if run.finished else None
    for stage in stages if isinstance(stages, list) else ():
        link = run.directory / LINKS / str(stage)
        if not link.is_dir():
            name = os.path.basename(os.readlink(link)) if link.is_symlink() else "an artifact"
            yield f"{link}: expected a link to {name}, which is missing; run the recipe again to make it"
