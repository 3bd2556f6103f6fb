"""Read the artifacts, checkpoints and records of a store, and compare them with their hashes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.flow.plan.roots import CACHES, ROOT, origin_of, root_of
from vfm.flow.plan.store import SLOT_NAME, Store
from vfm.flow.records.run_verification import run_problems
from vfm.flow.records.runs import kept_runs
from vfm.interfaces import MANIFEST_FILE
from vfm.storage.fingerprints import FINGERPRINTS_PATTERN
from vfm.storage.integrity import Known, damage, known_files, num_bytes, read_sealed, unlisted

META_FILE = "meta.json"  # record of a checkpoint
# Keys that every version has written.
RECORD_KEYS = {MANIFEST_FILE: ("kind", "identity", "inputs"), META_FILE: ("step",)}
CHECKPOINTS = ".*.work/**/step-[0-9]*"


@dataclass(frozen=True)
class Place:
    """A folder to verify. It is an artifact or a checkpoint of an unfinished training stage.

    Attributes:
        folder: The folder.
        known: Sizes and hashes of its files. A folder of an older version has no hashes (None).
        problems: Problems found before reading the files, one line each.
        proven: Whether it records the roots that it was computed from. Artifacts of older versions do not.
    """

    folder: Path
    known: Known | None
    problems: tuple[str, ...] = ()
    proven: bool = True

    @property
    def num_bytes(self) -> int:
        """Number of bytes to read."""
        return num_bytes(self.known or {})

    @property
    def num_files(self) -> int:
        """Number of files to read."""
        return len(self.known or ())

    def verify(self, on_bytes: Callable[[int], None]) -> list[str]:
        """Read all files and list the problems, one line each. `on_bytes` is called with the bytes of each block."""
        return [*self.problems, *damage(self.folder, self.known or {}, on_bytes)]

    @property
    def state(self) -> str:
        """Whether its files are hashed, and whether the artifact names the roots of its inputs."""
        if self.known is None:
            return "not hashed"
        if self.proven:
            return "good"
        return "not proven"


def places(store: Path) -> list[Place]:
    """List the artifacts and checkpoints of a store, or the artifact itself if the folder is an artifact.

    Raises:
        UserError: If there is no such folder, or it has neither artifacts nor runs.
    """
    if not store.is_dir():
        raise UserError(f"{store}: no such folder; expected a folder of artifacts and runs")
    if (store / MANIFEST_FILE).is_file():
        return [place_of(store)]
    listed = []
    for path in Store(store).entries():
        if path.is_dir():
            listed.append(place_of(path))
    for path in sorted(store.glob(CHECKPOINTS)):
        if path.is_dir():
            listed.append(_place(path, META_FILE))
    if not (listed or os.path.lexists(Store(store).runs)):
        raise UserError(f"{store}: expected a folder of artifacts and runs, got one with neither")
    return listed


def place_of(folder: Path) -> Place:
    """Prepare the verification of an artifact."""
    return _place(folder, MANIFEST_FILE)


def _place(folder: Path, record_file: str) -> Place:
    file = folder / record_file
    try:
        record = read_sealed(file, *RECORD_KEYS[record_file])
        known = known_files(record, file)
        if record_file == META_FILE or known is None:
            return Place(folder, known)
        problems = [*_wrong_identity(folder, record), *_wrong_root(folder, record)]
        if CACHES in record:
            problems += unlisted(folder, known, (MANIFEST_FILE, *record[CACHES]))
        return Place(folder, known, tuple(problems), proven=ROOT in record)
    except UserError as error:
        return Place(folder, {}, (str(error),))


def _wrong_identity(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    identity = str(manifest["identity"])
    if SLOT_NAME.fullmatch(folder.name) and not folder.name.endswith(f"-{identity[:8]}"):
        yield (
            f"{folder / MANIFEST_FILE}: expected an identity that begins with {folder.name[-8:]}, got {identity}:"
            " it is not the artifact of this name"
        )


def _wrong_root(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if the root is not the root of the listed files."""
    file = folder / MANIFEST_FILE
    if ROOT in manifest and manifest[ROOT] != root_of(manifest, file):
        yield f"{file}: expected the root {root_of(manifest, file)} of the files that it lists, got {manifest[ROOT]}"


def damaged_records(store: Path) -> Iterator[str]:
    """Yield a line for each damaged part of the runs, and each damaged file of cached fingerprints."""
    for run in kept_runs(Store(store)):
        yield from run_problems(run)
    for file in sorted(store.glob(FINGERPRINTS_PATTERN)):
        try:
            read_sealed(file)
        except UserError as error:
            yield str(error)
    yield from _changed_inputs(store)


def _changed_inputs(store: Path) -> Iterator[str]:
    """Yield a line for each input that has another root now than when an artifact was computed from it."""
    origins = {}
    now = {}  # name and present root, by the digits of the identity
    for path in Store(store).entries():
        origins[path.name] = origin_of(path)
        if origins[path.name].root:
            now[path.name[-8:]] = (path.name, origins[path.name].root)
    for artifact, origin in origins.items():
        for identity, root in origin.roots.items():
            name, current = now.get(identity[:8], ("", root))
            if current != root:
                changed = f"computed from {name} with the root {root[:12]}, which has the root {current[:12]} now"
                yield f"{store / artifact}: {changed}; run the recipe again"
