"""Publishing files and folders by one rename, after their bytes are on the disk.

Without `fsync` a power cut may leave the new name with old or empty content, since a file system is free to write the
name first. The order is: every file, every folder, the rename, the parent folder.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vfm.storage.permissions import share_as_umask_says


def publish_file(part: Path, target: Path) -> None:
    """Rename a complete file to its final name, replacing any earlier one."""
    sync(part)
    os.replace(part, target)
    sync(target.parent)


def publish_folder(part: Path, target: Path) -> None:
    """Rename a complete folder to its final name. That folder must be empty or missing."""
    share_as_umask_says(part)
    for folder, _, files in os.walk(part, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    os.rename(part, target)
    sync(target.parent)


@contextmanager
def naming_full_disks(place: Path) -> Iterator[None]:
    """Add the file's name to errors of full disks and size limits, since `write` leaves it out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = str(place)
            error.strerror = error.strerror or os.strerror(error.errno)
        raise


@contextmanager
def new_file(target: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a new file that gets its name at the end of the `with` block, unless an error was raised.

    Its name until then cannot be guessed, and it must not exist: a link that somebody has put there is not followed.

    Args:
        target: Its name at the end. An earlier file, or a link, is replaced.
        durable: Flush it to the disk before the rename. Not worth the time for files that can be made again.
    """
    part = part_name(target)
    try:
        with naming_full_disks(target), open(part, "xb", opener=_open_new) as stream:
            yield stream
        if durable:
            publish_file(part, target)
        else:
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def part_name(target: Path) -> Path:
    """Choose a random name next to `target` for a file or folder that will be renamed to `target`."""
    return target.with_name(f".{target.name.lstrip('.')}.{secrets.token_hex(8)}.part")


def open_part(part: Path) -> IO[bytes]:
    """Open a new file that may be large, replacing one left by a crash. A link there is not followed."""
    part.unlink(missing_ok=True)
    return open(part, "xb+", opener=_open_new)


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def write_file(target: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a whole file.

    Args:
        target: Path of the file.
        data: Its content.
        durable: As in `new_file`.
    """
    with new_file(target, durable=durable) as stream:
        stream.write(data)


def sync(path: Path) -> None:
    """Write a file's bytes, or a folder's names, to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # a link to a missing file
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it, such as some FUSE mounts for folders
            raise
    finally:
        os.close(descriptor)
