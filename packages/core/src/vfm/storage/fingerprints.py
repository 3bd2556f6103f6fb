"""Fingerprints of outside files by content, remembered in the store: an unchanged file costs a `stat`, not a read.

A path, a link to it and a copy have one fingerprint. Files up to 64 MiB are hashed whole; of larger ones, the size and
64 blocks, evenly spaced from the first to the last (`vfm verify --inputs` reads every byte). A folder's fingerprint is
that of the names and the contents of its files. `remote_fingerprints` has those of addresses (`s3://...`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from vfm.base import UserError
from vfm.storage import files
from vfm.storage.integrity import MUCH, hash_file, read_sealed, seal
from vfm.storage.publishing import write_file
from vfm.storage.remote_fingerprints import DIGITS, remote_fingerprints
from vfm.storage.store_files import reading

FINGERPRINTS_FILE = ".fingerprints.json"  # in the store; a folder of files has a file of its own
FINGERPRINTS_PATTERN = ".fingerprints*.json"
WHOLE_FILE = 64 << 20  # bytes of the largest file that is hashed whole
NUM_BLOCKS, BLOCK = 64, 64 << 10  # number of blocks that are read of a larger file, and their bytes
THREADS = 8  # files of a folder that are read at a time
# On a file system with a coarse clock, a file can change twice within one tick. So fingerprints of files that changed
# in the last two seconds are not remembered.
SETTLED = 2 * 10**9  # nanoseconds

State = list[int]
"""Size, modification time, time of change and inode. The time of change differs where `cp -p` makes the rest equal."""

Entries = dict[str, tuple[State, str]]
"""State and fingerprint of files: by their resolved paths, or by their paths in a folder."""


class Memory:
    """Fingerprints that are known from earlier plans; without a store, nothing is known and nothing is kept."""

    def __init__(self, store: Path | None = None, announce: Callable[[str], None] = lambda line: None) -> None:
        """Open the memory of a store; `announce` is called with a line before many bytes are read."""
        self.store, self.announce = store, announce
        self.parts: dict[str, Entries] = {}
        self.changed: set[str] = set()

    def entries(self, folder: str = "") -> tuple[str, Entries]:
        """Return the entries of a folder's files, empty: those of single files, and the name of their own file."""
        stem = hashlib.sha256(os.path.realpath(folder).encode(errors="surrogateescape")).hexdigest()[:16]
        name = f".fingerprints-{stem}.json" if folder else FINGERPRINTS_FILE
        if name not in self.parts:
            self.parts[name] = _read(self.store / name) if self.store else {}
        return name, self.parts[name]

    def save(self) -> None:
        """Write what was added. A store that cannot be written costs time only."""
        for name in self.changed if self.store else ():
            assert self.store
            with suppress(OSError):
                self.store.mkdir(parents=True, exist_ok=True)
                write_file(self.store / name, seal({"entries": self.parts[name]}, indent=None), durable=False)


@contextmanager
def cached_fingerprints(
    store: Path, announce: Callable[[str], None] = lambda line: None
) -> Iterator[Callable[[str], str]]:
    """Yield a `fingerprint` function that uses the store's memory, and save the memory at the end.

    Args:
        store: the store.
        announce: called with a line before many bytes are read.
    """
    memory = Memory(store, announce)
    try:
        yield lambda path: fingerprint(path, memory)
    finally:
        memory.save()


def fingerprint(path: str, memory: Memory) -> str:
    """Return a hash of the content of an outside file or folder.

    Args:
        path: the file, folder or address.
        memory: known fingerprints of files; new ones are added.

    Raises:
        UserError: the path is empty, does not exist, may not be read, or is neither a regular file nor a folder.
    """
    if not path:
        raise UserError("expected a path, got an empty one")
    if files.is_remote(path):
        return remote_fingerprints([path])[path]
    files.check_regular(path)
    try:
        if os.path.isdir(path):
            return hashlib.sha256(json.dumps(sorted(contents(path, memory).items())).encode()).hexdigest()[:DIGITS]
        place = os.path.realpath(path)
        return _of_files({place: place}, *memory.entries(), memory)[place]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read") from None


def contents(folder: str, memory: Memory) -> dict[str, str]:
    """Return the fingerprints of the files below a folder whose content counts, by relative path."""
    paths = {name: os.path.join(folder, name) for name in contents_names(folder)}
    return _of_files(paths, *memory.entries(folder), memory)


def contents_names(folder: str) -> list[str]:
    """Return the files below a folder whose content counts, without hidden ones and broken links, by relative path."""
    inside = (name for name in files.walk(folder) if "/." not in f"/{name}")
    return [name for name in inside if os.path.isfile(os.path.join(folder, name))]


def located(path: str) -> str:
    """Return a local path as an absolute one without links, for records that are read from other folders."""
    return path if files.is_remote(path) else os.path.realpath(path)


def _of_files(paths: dict[str, str], part: str, known: Entries, memory: Memory) -> dict[str, str]:
    """Return the fingerprints of files by their keys in `known`; those that are new or have changed are read."""
    states = {key: _state(path) for key, path in paths.items()}
    found = {key: known[key][1] for key in paths if key in known and known[key][0] == states[key]}
    missing = [key for key in paths if key not in found]
    if not missing:
        return found

    if (total := sum(bytes_to_read(states[key][0]) for key in missing)) >= MUCH:
        where = os.path.commonpath([os.path.dirname(paths[key]) or "." for key in missing])
        memory.announce(f"reading {total / 1e9:,.1f} GB in {where}, once, to identify the data by content")

    def read(key: str) -> str:
        return content_hash(paths[key], states[key][0])

    with ThreadPoolExecutor(min(THREADS, len(missing))) as threads:
        found |= zip(missing, threads.map(read, missing), strict=True)
    now = time.time_ns()
    settled = {key: (states[key], found[key]) for key in missing if now - states[key][2] > SETTLED}
    if settled:
        known |= settled
        memory.changed.add(part)
    return found


def bytes_to_read(size: int) -> int:
    """Return how many bytes of a file of this size its fingerprint reads."""
    return size if size <= WHOLE_FILE else NUM_BLOCKS * BLOCK


def content_hash(path: str, size: int) -> str:
    """Return the fingerprint of one file: a hash of all its bytes, or of its size and evenly spaced blocks."""
    if size <= WHOLE_FILE:
        return hash_file(Path(path))[:DIGITS]
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb", buffering=0) as stream:
        for number in range(NUM_BLOCKS):
            stream.seek((size - BLOCK) * number // (NUM_BLOCKS - 1))
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()[:DIGITS]


def _state(path: str) -> State:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read(file: Path) -> Entries:
    with suppress(UserError):  # missing or damaged: the files are read again
        record = read_sealed(file, "entries")
        with reading(file, "fingerprints"):
            return {key: (list(state), str(found)) for key, (state, found) in record["entries"].items()}
    return {}
