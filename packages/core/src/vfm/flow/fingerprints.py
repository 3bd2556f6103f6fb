"""Tells whether an outside file changed, and remembers what it found: an unchanged file costs a stat, not a read."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vfm.config import UserError

FINGERPRINTS_FILE = ".fingerprints.json"  # in the store
MEBIBYTE = 1 << 20
SETTLED = 2 * 10**9  # nanoseconds; a file that changed later than this may change again unseen on a coarse clock
Known = dict[str, tuple[list[int], str]]  # resolved path -> (size and times, fingerprint)


@contextmanager
def remembered(store: Path) -> Iterator[Callable[[str], str]]:
    """`fingerprint`, which knows what earlier plans found. Where a store cannot keep that, it costs time only."""
    file = store / FINGERPRINTS_FILE
    known = _read(file)
    before = dict(known)
    try:
        yield lambda path: fingerprint(path, known)
    finally:
        if known != before:
            _write(file, known)


def fingerprint(path: str, known: Known) -> str:
    """Tells whether an outside file changed: path, size, modification time, first and last MiB.

    A folder is told by the paths, sizes and times of its files; a remote address (`s3://...`) by itself.

    Args:
        path: the file, folder or address.
        known: fingerprints of files; one that is found there is not made again, a new one is added.

    Raises:
        UserError: nothing is there, or it may not be read.
    """
    if "://" in path:
        return hashlib.sha256(path.encode()).hexdigest()[:16]
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return _of_file(path, status, known)
        listing = [(name, (inner := os.stat(name)).st_size, inner.st_mtime_ns) for name in _files_below(Path(path))]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read") from None


def _of_file(path: str, status: os.stat_result, known: Known) -> str:
    place = os.path.realpath(path)
    # The time of change tells apart what a copy leaves equal: another file of this size and modification time.
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if place in known and known[place][0] == state:
        return known[place][1]
    digest = hashlib.sha256(f"{place} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape"))
    with open(path, "rb") as stream:
        digest.update(stream.read(MEBIBYTE))
        stream.seek(max(0, status.st_size - MEBIBYTE))
        digest.update(stream.read(MEBIBYTE))
    found = digest.hexdigest()[:16]
    if time.time_ns() - status.st_ctime_ns > SETTLED:
        known[place] = (state, found)
    return found


def _files_below(folder: Path) -> list[str]:
    return sorted(name for name in glob.glob(f"{glob.escape(str(folder))}/**", recursive=True) if Path(name).is_file())


def _read(file: Path) -> Known:
    try:
        return {place: (list(state), str(found)) for place, (state, found) in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(file: Path, known: Known) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known), encoding="utf-8")
        part.replace(file)
