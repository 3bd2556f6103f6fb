"""Fingerprint outside files by content, with a cache in the store. An unchanged file costs a `stat`, not a read.

A path, a link to it and a copy have the same fingerprint. Files up to 64 MiB are hashed whole. Of larger ones, the
size and 64 evenly spaced blocks are hashed. Once the SHA-256 of such a file is known (`whole_hashes`), it is compared
whenever the time or the inode has changed, and a file that differs between the blocks has another fingerprint. The
fingerprint of a folder hashes the names and contents of its files. For addresses (`s3://...`), see
`remote_fingerprints`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from vfm.base import UserError
from vfm.storage import files
from vfm.storage.integrity import MUCH, hash_file, read_sealed, seal
from vfm.storage.publishing import write_file
from vfm.storage.remote_fingerprints import DIGITS, remote_fingerprints
from vfm.storage.store_files import reading
from vfm.storage.whole_hashes import WHOLE_FILE, read_hashes

FINGERPRINTS_FILE = ".fingerprints.json"  # in the store, for single files; a folder of files has a separate file
FINGERPRINTS_PATTERN = ".fingerprints*.json"
NUM_BLOCKS, BLOCK = 64, 64 << 10  # number of blocks read of a larger file, and bytes per block
THREADS = 8  # files of a folder read concurrently
# On a file system with a coarse clock, a file can change twice within one tick. So fingerprints of files that changed
# in the last two seconds are not cached.
SETTLED = 2 * 10**9  # nanoseconds

State = list[int]
"""Size, modification time, time of change and inode. The time of change differs after `cp -p`, when the rest agrees."""

Entries = dict[str, tuple[State, str]]
"""State and fingerprint of files, by resolved path or by path in a folder."""


class FingerprintCache:
    """Fingerprints from earlier plans. Without a store it starts empty and saves nothing."""

    def __init__(self, store: Path | None = None, announce: Callable[[str], None] = lambda line: None) -> None:
        """Open the cache of a store. `announce` is called with a line before many bytes are read."""
        self.store = store
        self.announce = announce
        self.whole = read_hashes(store) if store else {}  # by fingerprint: SHA-256 of large files
        self.parts: dict[str, Entries] = {}  # by the name of their file in the store
        self.changed: set[str] = set()  # names of files with new entries

    def entries(self, folder: str = "") -> tuple[str, Entries]:
        """Look up the file name and the entries for the files of a folder (empty: for single files)."""
        stem = hashlib.sha256(os.path.realpath(folder).encode(errors="surrogateescape")).hexdigest()[:16]
        name = f".fingerprints-{stem}.json" if folder else FINGERPRINTS_FILE
        if name not in self.parts:
            self.parts[name] = _read(self.store / name) if self.store else {}
        return name, self.parts[name]

    def save(self) -> None:
        """Write the new entries. If the store is not writable, this only costs time in the next plan."""
        for name in self.changed if self.store else ():
            assert self.store
            with suppress(OSError):
                self.store.mkdir(parents=True, exist_ok=True)
                write_file(self.store / name, seal({"entries": self.parts[name]}, indent=None), durable=False)


@contextmanager
def cached_fingerprints(
    store: Path, announce: Callable[[str], None] = lambda line: None
) -> Iterator[Callable[[str], str]]:
    """Yield a `fingerprint` function that uses the store's cache, and save the cache at the end.

    Args:
        store: The store.
        announce: Called with a line before many bytes are read.
    """
    cache = FingerprintCache(store, announce)
    try:
        yield lambda path: fingerprint(path, cache)
    finally:
        cache.save()


def fingerprint(path: str, cache: FingerprintCache) -> str:
    """Hash the content of an outside file or folder.

    Args:
        path: The file, folder or address.
        cache: Known fingerprints of files. New ones are added.

    Raises:
        UserError: If the path is empty, does not exist, may not be read, or is neither a regular file nor a folder.
    """
    if not path:
        raise UserError("expected a path, got an empty one")
    if "\0" in path:
        raise UserError(f"expected a path, got {path!r}, which no file can have")
    if files.is_remote(path):
        return remote_fingerprints([path])[path]
    files.check_regular(path)
    try:
        if os.path.isdir(path):
            fingerprints = sorted(contents(path, cache).items())
            return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()[:DIGITS]
        resolved = os.path.realpath(path)
        return _of_files({resolved: resolved}, *cache.entries(), cache)[resolved]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read") from None


def contents(folder: str, cache: FingerprintCache) -> dict[str, str]:
    """Compute the fingerprints of all files of `contents_names`, by relative path."""
    paths = {name: os.path.join(folder, name) for name in contents_names(folder)}
    return _of_files(paths, *cache.entries(folder), cache)


def contents_names(folder: str) -> list[str]:
    """List the files below a folder that its fingerprint covers, by relative path.

    Hidden files and broken links are left out.
    """
    listed = []
    for name in files.walk(folder):
        if "/." not in f"/{name}" and os.path.isfile(os.path.join(folder, name)):
            listed.append(name)
    return listed


def located(path: str) -> str:
    """Resolve a local path to an absolute one without links, for records that are read from other folders."""
    return path if files.is_remote(path) else os.path.realpath(path)


def by_located_path(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Resolve the paths of fingerprints as in `located`."""
    return {located(path): fingerprint for path, fingerprint in fingerprints.items()}


def _of_files(paths: dict[str, str], part: str, known: Entries, cache: FingerprintCache) -> dict[str, str]:
    """Find the fingerprints of files by their keys in `known`. New and changed files are read."""
    states = {}
    fingerprints = {}
    missing = []
    for key, path in paths.items():
        states[key] = _state(path)
        if key in known and known[key][0] == states[key]:
            fingerprints[key] = known[key][1]
        else:
            missing.append(key)
    if not missing:
        return fingerprints

    total = sum(bytes_to_read(states[key][0]) for key in missing)
    if total >= MUCH:
        where = os.path.commonpath([os.path.dirname(paths[key]) or "." for key in missing])
        cache.announce(f"reading {total / 1e9:,.1f} GB in {where}, once, to identify the data by content")

    def read(key: str) -> str:
        return _compared(paths[key], content_hash(paths[key], states[key][0]), cache)

    with ThreadPoolExecutor(min(THREADS, len(missing))) as threads:
        fingerprints |= zip(missing, threads.map(read, missing), strict=True)
    now = time.time_ns()
    for key in missing:
        if now - states[key][2] > SETTLED:
            known[key] = (states[key], fingerprints[key])
            cache.changed.add(part)
    return fingerprints


def _compared(path: str, digest: str, cache: FingerprintCache) -> str:
    """Compare all bytes of a large file with the file that had this fingerprint before. Others get another one."""
    known = cache.whole.get(digest)
    whole = hash_file(Path(path)) if known else known
    return digest if whole == known else hashlib.sha256(f"{digest}{whole}".encode()).hexdigest()[:DIGITS]


def bytes_to_read(size: int) -> int:
    """Count the bytes that the fingerprint of a file of this size reads."""
    return size if size <= WHOLE_FILE else NUM_BLOCKS * BLOCK


def content_hash(path: str, size: int) -> str:
    """Compute the fingerprint of a single file.

    It is a hash of all its bytes, or of its size and evenly spaced blocks.
    """
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
            return {key: (list(state), str(digest)) for key, (state, digest) in record["entries"].items()}
    return {}
