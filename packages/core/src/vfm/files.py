"""Local and remote files: brace patterns and lists of paths, and reading a range of bytes of one file.

Local files are read with plain system calls; `s3://`, `gs://`, `http://`, `memory://` and others through fsspec.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec

from vfm.config import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_remote(path: str) -> bool:
    """Return True if the path is an address for fsspec."""
    return "://" in path


def expand_braces(pattern: str) -> list[str]:
    """Return all paths of a brace pattern, as bash expands it: `{000..009}.tar`, `{a,b}/{0..3}.tar`.

    Raises:
        UserError: a range is descending.
    """
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + part + rest for part in _alternatives(match[1], pattern) for rest in expand_braces(tail)]


def _alternatives(inside: str, pattern: str) -> list[str]:
    span = _RANGE.fullmatch(inside)
    if not span:
        return inside.split(",")
    first, last = span[1], span[2]
    if int(first) > int(last):
        raise UserError(f"{pattern}: expected an ascending range, got {{{inside}}}")
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def expand_paths(path: str | Sequence[str]) -> list[str]:
    """Expand a path, a list of paths, brace patterns, wildcards, and several paths joined by `::`.

    The files of a brace pattern need not exist; wildcards give the existing files, sorted.

    Raises:
        UserError: a wildcard pattern matches nothing.
    """
    parts = [path] if isinstance(path, str) else list(path)
    found: list[str] = []
    for pattern in (one for part in parts for one in part.split("::")):
        for name in expand_braces(os.path.expanduser(pattern)):
            hits = _wildcards(name) if any(wildcard in name for wildcard in "*?") else [name]
            if not hits:
                raise UserError(f"{name}: no such file")
            found += hits
    return found


def _wildcards(name: str) -> list[str]:
    if not is_remote(name):
        return sorted(glob.glob(name))
    store, inside = filesystem(name)
    return sorted(store.unstrip_protocol(hit) for hit in store.glob(inside))


def filesystem(path: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a remote address, and the path in it.

    Raises:
        UserError: the protocol is unknown, or its package is not installed.
    """
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(path))
    except ImportError as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a valid fsspec address: {error}") from None


def is_directory(path: str) -> bool:
    """Return True if the path is a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    store, inside = filesystem(path)
    return bool(store.isdir(inside))


def exists(path: str) -> bool:
    """Return True if the path exists."""
    if not is_remote(path):
        return os.path.exists(path)
    store, inside = filesystem(path)
    return bool(store.exists(inside))


def size_and_time(path: str) -> tuple[int, int]:
    """Return size in bytes and modification time in ns (0 for remote files, which do not always have one).

    Raises:
        UserError: the file does not exist, or may not be read.
    """
    try:
        if not is_remote(path):
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns
        store, inside = filesystem(path)
        return int(store.size(inside)), 0
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read") from None


def read_bytes(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return bytes `start` to `stop` of a file, fewer if it ends before. A remote file takes one request.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if is_remote(path):
        store, inside = filesystem(path)
        return bytes(store.cat_file(inside, start=start, end=stop))
    if stop is None:
        with open(path, "rb", buffering=0) as stream:
            stream.seek(start)
            return stream.read()
    file = os.open(path, os.O_RDONLY)  # Python's file object would double the time to read a sample's few bytes
    try:
        return os.pread(file, stop - start, start)
    finally:
        os.close(file)


def read_text(path: str) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: the file does not exist, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None


def open_binary(path: str) -> IO[bytes]:
    """Open the file as a seekable stream."""
    if not is_remote(path):
        return open(path, "rb")
    store, inside = filesystem(path)
    return cast("IO[bytes]", store.open(inside, "rb"))


def walk(folder: str) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it, with forward slashes, sorted."""
    if is_remote(folder):
        store, inside = filesystem(folder)
        yield from sorted(str(PurePosixPath(name).relative_to(inside)) for name in store.find(inside))
        return
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from ((Path(root) / name).relative_to(folder).as_posix() for name in sorted(names))


def is_inside(relative: str) -> bool:
    """Return True if a relative path does not leave the folder that it starts from."""
    if ".." not in relative and "\\" not in relative:  # fast path for nearly all names
        return not relative.startswith("/")
    path = PurePosixPath(relative.replace("\\", "/"))
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return not path.is_absolute()


def join_inside(root: str, relative: str) -> str | None:
    """Return `root/relative`, or None if that leaves the root. An absolute path is inside the root `/`."""
    if root == "/":
        return relative
    return f"{root.rstrip('/')}/{relative}" if is_inside(relative) else None
