"""Fingerprints of outside files, cached in the store: an unchanged file costs a `stat`, not a read."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vfm import files
from vfm.config import UserError

FINGERPRINTS_FILE = ".fingerprints.json"  # in the store
MEBIBYTE = 1 << 20
# On a file system with a coarse clock, a file can change twice within one tick. So fingerprints of files that changed
# in the last two seconds are not cached.
SETTLED = 2 * 10**9  # nanoseconds
Cache = dict[str, tuple[list[int], str]]  # resolved path -> (size and times, fingerprint)


@contextmanager
def cached_fingerprints(store: Path) -> Iterator[Callable[[str], str]]:
    """Yield a `fingerprint` function that uses the store's cache, and save the cache at the end.

    A store that cannot be written costs time only: nothing is cached.
    """
    file = store / FINGERPRINTS_FILE
    cache = _read(file)
    before = dict(cache)
    try:
        yield lambda path: fingerprint(path, cache)
    finally:
        if cache != before:
            _write(file, cache)


def fingerprint(path: str, cache: Cache) -> str:
    """Return a hash that changes when an outside file changes: of path, size, modification time, first and last MiB.

    The fingerprint of a folder depends on the paths, sizes and times of its files; that of a remote address
    (`s3://...`) on the address only.

    Args:
        path: the file, folder or address.
        cache: known fingerprints of files; new ones are added.

    Raises:
        UserError: the path does not exist, may not be read, or is neither a regular file nor a folder.
    """
    if "://" in path:
        return hashlib.sha256(path.encode()).hexdigest()[:16]
    files.check_regular(path)
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return _of_file(path, status, cache)
        listing = [(name, (inner := os.stat(name)).st_size, inner.st_mtime_ns) for name in _files_below(path)]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read") from None


def _of_file(path: str, status: os.stat_result, cache: Cache) -> str:
    place = os.path.realpath(path)
    # The time of change distinguishes files that `cp -p` leaves with equal size and modification time.
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if place in cache and cache[place][0] == state:
        return cache[place][1]
    digest = hashlib.sha256(f"{place} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape"))
    with open(path, "rb") as stream:
        digest.update(stream.read(MEBIBYTE))
        stream.seek(max(0, status.st_size - MEBIBYTE))
        digest.update(stream.read(MEBIBYTE))
    found = digest.hexdigest()[:16]
    if time.time_ns() - status.st_ctime_ns > SETTLED:
        cache[place] = (state, found)
    return found


def _files_below(folder: str) -> list[str]:
    """Return the files below a folder, without hidden ones and without broken links, sorted."""
    found = (f"{Path(folder)}/{name}" for name in files.walk(folder) if "/." not in f"/{name}")
    return sorted(name for name in found if os.path.isfile(name))


def _read(file: Path) -> Cache:
    try:
        return {place: (list(state), str(found)) for place, (state, found) in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(file: Path, cache: Cache) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(cache), encoding="utf-8")
        part.replace(file)
