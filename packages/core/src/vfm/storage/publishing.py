"""Publishing files and folders by one rename, after their bytes are on the disk.

Without `fsync` a power cut may leave the new name with old or empty content, since a file system is free to write the
name first. The order is: every file, every folder, the rename, the parent folder.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from vfm.storage.permissions import share_as_umask_says


def publish_file(part: Path, target: Path) -> None:
    """Rename a complete file to its final name, replacing any earlier one."""
    sync(part)
    os.replace(part, target)
    sync(target.parent)


def publish_folder(part: Path, target: Path) -> None:
    """Rename a complete folder to its final name, which must not exist or be an empty folder."""
    share_as_umask_says(part)
    for folder, _, files in os.walk(part, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    os.rename(part, target)
    sync(target.parent)


def write_file(target: Path, data: bytes) -> None:
    """Write a file under another name and publish it."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        publish_file(part, target)
    finally:
        part.unlink(missing_ok=True)


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
