"""List and read local and remote files, whole or by ranges of bytes.

Local files are read with plain system calls, `s3://`, `gs://`, `http://`, `memory://` and others through fsspec.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, cast

from vfm.base import UserError
from vfm.storage import remote
from vfm.storage.remote import filesystem as filesystem, is_remote as is_remote, without_query as without_query
from vfm.storage.remote_spans import RemoteError

MAX_FILES = 20_000_000  # files below one folder; ImageNet-21k has 14 million
FILE_ENDINGS = (".tar", ".parquet", ".csv", ".tsv", ".jsonl", ".json", ".txt", ".gz", ".tgz", ".zip")


def is_directory(path: str) -> bool:
    """Check whether the path is a folder.

    A remote path with the ending of a file is not. This needs no request.
    """
    if not is_remote(path):
        return os.path.isdir(path)
    if without_query(path).endswith(FILE_ENDINGS):
        return False
    return bool(remote.ask(path, "isdir"))


def exists(path: str) -> bool:
    """Check whether the path exists."""
    return not missing([path])


def missing(paths: Sequence[str]) -> list[str]:
    """Select the paths that do not exist. Remote paths are checked concurrently.

    Raises:
        UserError: If a server does not answer.
    """
    addresses = list(filter(is_remote, paths))
    remote_exists = dict(zip(addresses, remote.exist(addresses), strict=True))
    absent = []
    for path in paths:
        there = remote_exists[path] if path in remote_exists else os.path.exists(path)
        if not there:
            absent.append(path)
    return absent


def check_regular(path: str) -> None:
    """Check that a local path is not a FIFO, a device or a socket, since reading one of these may never end.

    Raises:
        UserError: If it is a FIFO, a device or a socket.
    """
    if not is_remote(path) and os.path.exists(path):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError(f"{path}: expected a regular file or a folder, got {_type_name(mode)}")


def _type_name(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def size_and_time(path: str) -> tuple[int, int]:
    """Read size in bytes and modification time in ns. For a remote file, the time is a hash of its ETag (or 0).

    Raises:
        UserError: If the file does not exist, is not a regular file, or may not be read.
    """
    try:
        if not is_remote(path):
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: expected a regular file, got {_type_name(status.st_mode)}")
            return status.st_size, status.st_mtime_ns
        facts = remote.facts(path)
        return facts.size, facts.version
    except RemoteError as error:
        raise UserError("no such file".join(str(error).rsplit(remote.NOT_FOUND, 1))) from error
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read") from None


def open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor. O_NONBLOCK, since opening a FIFO would wait for its writer.

    Raises:
        OSError: If there is no such file, or it is not a regular file.
    """
    file = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        raise OSError(errno.EINVAL, f"expected a regular file, got {_type_name(mode)}", path)
    return file


def read_bytes(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """Read a part of a file. A remote file takes one request.

    Args:
        path: Local path or address.
        start: First byte.
        stop: Byte after the last one. A file may end before.

    Raises:
        OSError: If the file does not exist, or is not a regular file.
    """
    if is_remote(path):
        return remote.read_whole(path, start, stop)
    file = open_regular(path)
    if stop is None:
        with open(file, "rb", buffering=0) as stream:
            stream.seek(start)
            return stream.read()
    try:  # Python's file object would double the time to read the few bytes of a sample
        return os.pread(file, stop - start, start)
    finally:
        os.close(file)


def read_text(path: str) -> str:
    """Read a UTF-8 file, without its byte order mark.

    Raises:
        UserError: If the file does not exist, may not be read, is not a regular file, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None


def open_binary(path: str) -> IO[bytes]:
    """Open a regular file as a seekable stream.

    Raises:
        OSError: If there is no such file, or it is not a regular file.
    """
    if not is_remote(path):
        return open(path, "rb", opener=open_regular)
    store, inside = filesystem(path)
    return cast("IO[bytes]", store.open(inside, "rb"))


def walk(folder: str, links: list[str] | None = None, devices: list[str] | None = None) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it, with forward slashes, sorted.

    Links to folders are not followed, since they may form a circle, or lead out of the folder. Links to files are
    listed, including broken ones, so that they can be counted. FIFOs, devices and sockets are not listed.

    Args:
        folder: The folder.
        links: Receives the links to folders.
        devices: Receives the FIFOs, devices and sockets.

    Raises:
        UserError: If the folder is the root of the file system, has too many files, or may not be read.
    """
    if is_remote(folder):
        _, inside = filesystem(folder)
        yield from sorted(str(PurePosixPath(name).relative_to(inside)) for name in remote.ask(folder, "find"))
        return
    if os.path.realpath(folder) == os.path.sep:
        raise UserError(f"{folder}: expected a folder of data, got the root of the file system")
    count = 0
    pending = [""]
    while pending:
        subfolder = pending.pop()
        names, folders, linked, others = _listed(folder, subfolder)
        if links is not None:
            links += linked
        if devices is not None:
            devices += others
        count += len(names)
        if count > MAX_FILES:
            raise UserError(f"{folder}: expected a folder of at most {MAX_FILES:,} files, got more")
        yield from names
        pending += reversed(folders)  # depth first, in sorted order


def names_in(folder: str) -> list[str]:
    """List the files directly in a folder, sorted, as `walk` does."""
    if is_remote(folder):
        return [name for name in walk(folder) if "/" not in name]
    return _listed(folder, "")[0]


def _listed(folder: str, subfolder: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """List files, folders, links to folders, and others in `folder/subfolder`, relative to `folder`, sorted by name."""
    names = []
    folders = []
    links = []
    others = []
    try:
        with os.scandir(os.path.join(folder, subfolder)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{subfolder}{entry.name}/")
                elif _is_file(entry):
                    names.append(subfolder + entry.name)
                elif entry.is_symlink() and entry.is_dir():
                    links.append(subfolder + entry.name)
                else:
                    others.append(subfolder + entry.name)
    except PermissionError:
        raise UserError(f"{os.path.join(folder, subfolder)}: no permission to read") from None
    except FileNotFoundError:  # removed meanwhile
        pass
    return sorted(names), sorted(folders, key=lambda name: name[:-1]), sorted(links), sorted(others)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Check whether an entry is a regular file, a link to one, or a broken link."""
    if entry.is_file(follow_symlinks=False):
        return True
    if not entry.is_symlink():
        return False
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # the target is missing, or is the link itself
        return True


def is_inside(relative: str) -> bool:
    """Check whether a relative path stays in the folder that it starts from."""
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
    """Join a root and a relative path.

    An absolute path is inside the root `/`. A remote address is outside every other root, and a name with a NUL is
    outside all.

    Returns:
        The path, or None if it leaves the root.
    """
    if "\0" in relative or (root != "/" and is_remote(relative)):
        return None
    if root == "/":
        return relative
    return f"{root.rstrip('/')}/{relative}" if is_inside(relative) else None
