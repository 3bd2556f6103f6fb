"""SHA-256 of large outside files, whose fingerprints leave out most of their bytes.

A stage reads its files anyway, so a thread computes their hashes at the same time, and the store keeps them by
fingerprint. If the time or inode of a file changes later, all of its bytes are compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from vfm.base import UserError
from vfm.storage import files
from vfm.storage.integrity import hash_file, read_sealed, seal
from vfm.storage.publishing import write_file
from vfm.storage.store_files import reading

WHOLE_FILE = 64 << 20  # size in bytes up to which a fingerprint covers all bytes
WHOLE_FILE_HASHES = ".whole-hashes.json"  # in the store: SHA-256 of large files, by their fingerprints


class _StoppedError(Exception):
    """The stage has failed, so the hashes are not needed."""


def read_hashes(store: Path) -> dict[str, str]:
    """Read the hashes of large files. A missing or damaged file is an empty one."""
    with suppress(UserError):
        record = read_sealed(store / WHOLE_FILE_HASHES, "hashes")
        with reading(store / WHOLE_FILE_HASHES, "hashes"):
            return {str(known): str(digest) for known, digest in record["hashes"].items()}
    return {}


def add_hashes(store: Path, hashes: dict[str, str]) -> None:
    """Add hashes to the store. Existing hashes of the same fingerprints are kept."""
    write_file(store / WHOLE_FILE_HASHES, seal({"hashes": {**hashes, **read_hashes(store)}}))


@contextmanager
def hashed_meanwhile(store: Path, fingerprints: dict[str, str]) -> Iterator[None]:
    """Compute the hashes of large local files in a thread while the stage in the `with` block reads them.

    Args:
        store: The store. It keeps the hashes.
        fingerprints: Fingerprint of each outside file.
    """
    known = read_hashes(store)
    large = {path: name for path, name in fingerprints.items() if _is_large(path) and name not in known}
    if not large:
        yield
        return
    hashes: dict[str, str] = {}
    stop = Event()
    thread = Thread(target=_hash, args=(large.items(), hashes, stop), daemon=True, name="hashes of outside files")
    thread.start()
    try:
        yield
    except BaseException:
        stop.set()
        raise
    thread.join()
    if hashes:
        add_hashes(store, hashes)


def _is_large(path: str) -> bool:
    return not files.is_remote(path) and os.path.isfile(path) and os.path.getsize(path) > WHOLE_FILE


def _hash(large: Iterable[tuple[str, str]], hashes: dict[str, str], stop: Event) -> None:
    def check(count: int) -> None:
        if stop.is_set():
            raise _StoppedError

    for path, name in large:
        with suppress(OSError, _StoppedError):  # the stage reports what it cannot read
            hashes[name] = hash_file(Path(path), check)
