"""Sizes and hashes of files: whether a folder still contains what was written into it.

One JSON file describes the other files of a folder: `manifest.json` of an artifact, `meta.json` of a checkpoint. It is
written last and is *sealed*:

    "files": {"model.safetensors": [size in bytes, SHA-256], ...}
    "sha256": hash of the file itself, with zeros in place of this value; the last key

Older records have neither key and are read as they are. Sizes are compared when a run is planned, hashes when a folder
is loaded, and both by `vfm verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from vfm.base import UserError, escaped_json
from vfm.storage.store_files import as_record, reading

FILES, SEAL = "files", "sha256"
BLOCK = 1 << 20  # bytes read at a time
IN_THREADS = 1 << 24  # bytes from which files are hashed in several threads: SHA-256 takes a second per 2 GB
MUCH = 1 << 32  # bytes whose reading takes long enough to be announced
_SEAL_AT_END = re.compile(rb'"(?P<key>[^"]*)": "(?P<hash>[0-9a-f]{64})"\s*\}\s*\Z')
_ZEROS = b"0" * 64
_checked: dict[str, int] = {}  # folder -> hash of the state of its files when their hashes were last compared

Known = Mapping[str, tuple[int, str]]
"""Size and SHA-256 of each file, by its path relative to the folder."""


def seal(record: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """Return a record as JSON that ends with its own hash."""
    zeros = {**record, SEAL: _ZEROS.decode()}
    text = escaped_json(json.dumps(zeros, indent=indent, ensure_ascii=False)).encode() + b"\n"
    start, _, end = text.rpartition(_ZEROS)
    return start + hashlib.sha256(text).hexdigest().encode() + end


def read_sealed(file: Path, *keys: str) -> dict[str, Any]:
    """Return a record that `seal` wrote, without its hash; one of an older version has none.

    Args:
        file: the file.
        keys: keys that the record must have.

    Raises:
        UserError: the file is missing or damaged, or lacks a key.
    """
    with reading(file, "JSON"):
        data = file.read_bytes()
    record = as_record(file, data, *keys)
    if not record:
        raise UserError(f"{file}: not as it was written: it is an empty object")  # which no version wrote
    if found := _SEAL_AT_END.search(data):
        start, end = found.span("hash")
        expected = hashlib.sha256(data[:start] + _ZEROS + data[end:]).hexdigest().encode()
        if (SEAL.encode(), expected) != (found["key"], found["hash"]):  # a flip may also be in the key
            raise UserError(f"{file}: not as it was written: its SHA-256 has changed")
    elif FILES in record or SEAL in record:
        raise UserError(f"{file}: not as it was written: expected its SHA-256 at the end")
    record.pop(SEAL, None)
    return record


def known_files(record: Mapping[str, Any], file: Path) -> Known | None:
    """Return the files that a record describes; None for a record of an older version.

    Raises:
        UserError: the entries are not of the right form.
    """
    if FILES not in record:
        return None
    with reading(file, "sizes and hashes of files"):
        return {str(name): (int(size), str(digest)) for name, (size, digest) in record[FILES].items()}


def hash_file(file: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """Return the SHA-256 of a file.

    Args:
        file: the file.
        on_bytes: called with the number of bytes of each block that was read.
    """
    digest, block = hashlib.sha256(), bytearray(BLOCK)
    view = memoryview(block)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(view[:count])
            on_bytes(count)
    return digest.hexdigest()


def hash_folder(folder: Path, *, without: Iterable[str] = ()) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of all files below a folder, sorted by name.

    Args:
        folder: the folder.
        without: files, and folders with all their files, that are left out.
    """
    left_out = {Path(name) for name in without}
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = [name for name in names if not left_out & {name, *name.parents}]
    sizes = [(folder / name).stat().st_size for name in kept]
    digests = _map(lambda name: hash_file(folder / name), kept, sum(sizes))
    return dict(zip((name.as_posix() for name in kept), zip(sizes, digests, strict=True), strict=True))


def wrong_sizes(folder: Path, known: Known) -> list[str]:
    """Return a line for each file that is missing or has another size."""
    return [line for name, (size, _) in known.items() if (line := _size_problem(folder / name, size))]


def damage(folder: Path, known: Known, on_bytes: Callable[[int], None] = lambda count: None) -> list[str]:
    """Return a line for each file that is not as it was written; this reads all files.

    Args:
        folder: the folder.
        known: its files.
        on_bytes: as in `hash_file`; called from several threads.
    """

    def problem(name: str) -> str:
        size, digest = known[name]
        try:
            if line := _size_problem(folder / name, size):
                return line
            same = hash_file(folder / name, on_bytes) == digest
        except OSError as error:
            return f"{folder / name}: not readable: {error.strerror or error}"
        return "" if same else f"{folder / name}: not as it was written: its SHA-256 has changed"

    return [line for line in _map(problem, list(known), sum(size for size, _ in known.values())) if line]


def check_folder(
    folder: Path, record_file: str, below: str = "", on_much: Callable[[int], None] = lambda count: None
) -> None:
    """Compare the hashes of a folder's files, unless this process has compared them in their present state.

    Nothing is compared for a folder without a record, and in worker processes (`multiprocessing`), which read what the
    process that started them has checked.

    Args:
        folder: the folder.
        record_file: name of the file with the sizes and hashes.
        below: only files whose path begins with this.
        on_much: called with the number of bytes to read if there are many.

    Raises:
        UserError: files are missing or damaged, one line each.
    """
    if not (folder / record_file).is_file() or parent_process() is not None:
        return
    known = known_files(read_sealed(folder / record_file), folder / record_file)
    if not known:
        return
    chosen = {name: facts for name, facts in known.items() if name.startswith(below)}
    key, state = f"{folder.resolve()} {below}", _state(folder, chosen)
    if state is not None and _checked.get(key) == state:
        return
    if (total := sum(size for size, _ in chosen.values())) >= MUCH:
        on_much(total)
    if lines := damage(folder, chosen):
        made = os.path.realpath(folder)  # the run has links to its artifacts: without one nothing is made again
        raise UserError("\n".join(f"{line}; remove {made} to make it again" for line in lines))
    if state is not None:
        _checked[key] = state


def _state(folder: Path, known: Known) -> int | None:
    """Return a hash of what changes when a file is written: sizes, times and inodes; None if a file is missing."""
    try:
        found = [os.stat(folder / name) for name in known]
    except OSError:
        return None
    return hash((*known.items(), *((one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for one in found)))


def _size_problem(file: Path, size: int) -> str:
    try:
        found = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return f"{file}: missing; expected a file of {size:,} bytes"
    return "" if found == size else f"{file}: expected {size:,} bytes, got {found:,}"


def _map(function: Callable[[Any], str], names: list[Any], num_bytes: int) -> Iterator[str]:
    """Call the function for each file, in several threads if there is much to read."""
    if num_bytes < IN_THREADS or len(names) < 2:
        yield from map(function, names)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        yield from threads.map(function, names)
