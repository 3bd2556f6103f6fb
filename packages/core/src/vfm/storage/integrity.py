"""Sizes and hashes of files: check whether a folder still contains the files that were written into it.

One JSON file describes the other files of a folder: `manifest.json` of an artifact, `meta.json` of a checkpoint. It is
written last and is *sealed*:

    "files": {"model.safetensors": [size in bytes, SHA-256], ...}
    "sha256": hash of the file itself, with zeros in place of this value. This is the last key.

Older records have neither key and are read without checks. Sizes are compared when a run is planned, hashes when a
folder is loaded, and both by `vfm verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vfm.base import UserError, escaped_json
from vfm.storage.store_files import as_record, reading

FILES = "files"
SEAL = "sha256"
BLOCK = 1 << 20  # bytes read at a time
IN_THREADS = 1 << 24  # bytes from which files are hashed in several threads: SHA-256 takes a second per 2 GB
MUCH = 1 << 32  # bytes that take long enough to read to be announced
_SEAL_AT_END = re.compile(rb'"(?P<key>[^"]*)": "(?P<hash>[0-9a-f]{64})"\s*\}\s*\Z')
_PAGE_SEAL = re.compile(rb"\n<!-- sha256: (?P<hash>[0-9a-f]{64}) -->\n\Z")
_ZEROS = b"0" * 64

Known = Mapping[str, tuple[int, str]]
"""Size and SHA-256 of each file, by its path relative to the folder."""


def seal(record: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """Serialize a record as JSON that ends with its own hash."""
    zeros = {**record, SEAL: _ZEROS.decode()}
    text = escaped_json(json.dumps(zeros, indent=indent, ensure_ascii=False)).encode() + b"\n"
    start, _, end = text.rpartition(_ZEROS)
    return start + hashlib.sha256(text).hexdigest().encode() + end


def read_sealed(file: Path, *keys: str) -> dict[str, Any]:
    """Read a record that `seal` wrote, and check its hash. Records of older versions have no hash.

    Args:
        file: The file.
        keys: Keys that the record must have.

    Raises:
        UserError: If the file is missing or damaged, or lacks a key.
    """
    with reading(file, "JSON"):
        data = file.read_bytes()
    record = as_record(file, data, *keys)
    if not record:
        raise UserError(f"{file}: not as it was written: it is an empty object")  # no version wrote an empty object
    match = _SEAL_AT_END.search(data)
    if match:
        start, end = match.span("hash")
        expected = hashlib.sha256(data[:start] + _ZEROS + data[end:]).hexdigest().encode()
        if (SEAL.encode(), expected) != (match["key"], match["hash"]):  # a flipped bit may also be in the key
            raise UserError(f"{file}: not as it was written: its SHA-256 has changed")
    elif FILES in record or SEAL in record:
        raise UserError(f"{file}: not as it was written: expected its SHA-256 at the end")
    record.pop(SEAL, None)
    return record


def sealed_page(page: bytes) -> bytes:
    """Append a comment with the SHA-256 of an HTML page."""
    return b"%s\n<!-- sha256: %s -->\n" % (page, hashlib.sha256(page).hexdigest().encode())


def page_is_whole(page: bytes) -> bool:
    """Check whether a page is as `sealed_page` wrote it."""
    match = _PAGE_SEAL.search(page)
    if match is None:
        return False
    return hashlib.sha256(page[: match.start()]).hexdigest().encode() == match["hash"]


def known_files(record: Mapping[str, Any], file: Path) -> Known | None:
    """Parse the sizes and hashes of files in a record. A record of an older version has none: None.

    Raises:
        UserError: If the entries are not of the right form.
    """
    if FILES not in record:
        return None
    with reading(file, "sizes and hashes of files"):
        return {str(name): (int(size), str(digest)) for name, (size, digest) in record[FILES].items()}


def hash_file(file: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """Compute the SHA-256 of a file.

    Args:
        file: The file.
        on_bytes: Called with the number of bytes of each block read.
    """
    digest = hashlib.sha256()
    block = bytearray(BLOCK)
    view = memoryview(block)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(view[:count])
            on_bytes(count)
    return digest.hexdigest()


def hash_folder(folder: Path, *, without: Iterable[str] = ()) -> dict[str, tuple[int, str]]:
    """Compute size and SHA-256 of all files below a folder, sorted by name.

    Args:
        folder: The folder.
        without: Files, and folders with all their files, to leave out.
    """
    names = []
    sizes = []
    for path in _below(folder, without):
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
            sizes.append(path.stat().st_size)
    digests = _map(lambda name: hash_file(folder / name), names, sum(sizes))
    return dict(zip(names, zip(sizes, digests, strict=True), strict=True))


def _below(folder: Path, without: Iterable[str]) -> Iterator[Path]:
    """Yield all paths below a folder, sorted, without some files and folders."""
    left_out = set(map(Path, without))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not left_out & {name, *name.parents}:
            yield path


def num_bytes(known: Known) -> int:
    """Add up the sizes of files."""
    return sum(size for size, _ in known.values())


def wrong_sizes(folder: Path, known: Known) -> list[str]:
    """Describe each file that is missing or has another size, in one line each."""
    problems = []
    for name, (size, _) in known.items():
        problem = _size_problem(folder / name, size)
        if problem:
            problems.append(problem)
    return problems


def damage(folder: Path, known: Known, on_bytes: Callable[[int], None] = lambda count: None) -> list[str]:
    """Describe each file that is not as it was written, in one line each. This reads all files.

    Args:
        folder: The folder.
        known: Sizes and hashes of its files.
        on_bytes: As in `hash_file`. It is called from several threads.
    """

    def problem(name: str) -> str:
        size, digest = known[name]
        try:
            size_problem = _size_problem(folder / name, size)
            if size_problem:
                return size_problem
            same = hash_file(folder / name, on_bytes) == digest
        except OSError as error:
            return f"{folder / name}: not readable: {error.strerror or error}"
        return "" if same else f"{folder / name}: not as it was written: its SHA-256 has changed"

    return list(filter(None, _map(problem, list(known), num_bytes(known))))


def unlisted(folder: Path, known: Known, without: Iterable[str]) -> list[str]:
    """Describe each file or link in a folder that its record does not list, in one line each.

    Args:
        folder: The folder.
        known: Its files.
        without: Files, and folders with all their files, that are not listed.
    """
    lines = []
    for path in _below(folder, without):
        if path.is_symlink():
            lines.append(f"{path}: expected a file or a folder, got a link; remove it")
        elif not path.is_dir() and path.relative_to(folder).as_posix() not in known:
            lines.append(f"{path}: not in the manifest: it was not there when the artifact was made; remove it")
    return lines


def _size_problem(file: Path, size: int) -> str:
    try:
        actual = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return f"{file}: missing; expected a file of {size:,} bytes"
    return "" if actual == size else f"{file}: expected {size:,} bytes, got {actual:,}"


def _map(function: Callable[[Any], str], names: list[Any], num_bytes: int) -> Iterator[str]:
    """Call the function for each file, in several threads if there is much to read."""
    if num_bytes < IN_THREADS or len(names) < 2:
        yield from map(function, names)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        yield from threads.map(function, names)
