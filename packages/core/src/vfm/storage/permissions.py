"""Give published files the permissions of new files, and report an unwritable folder in one line."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from vfm.base import UserError


def share_as_umask_says(folder: Path) -> None:
    """Set the permissions of new files on everything in a folder.

    safetensors and others write a temporary file that only its owner may read, and rename it. In a shared store, nobody
    else could then read the models. The folder must have been created by `mkdir`, so that its permissions follow the
    umask and the defaults of the parent.

    Args:
        folder: The folder. Permissions are added, never removed. Links are not followed.
    """
    allowed = folder.stat().st_mode & 0o777
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            permissions = allowed if stat.S_ISDIR(status.st_mode) else allowed & 0o666  # no file becomes executable
            wanted = stat.S_IMODE(status.st_mode) | permissions
            shared_file = stat.S_ISREG(status.st_mode) and status.st_nlink > 1  # a hard link to another user's file
            if wanted != stat.S_IMODE(status.st_mode) and not stat.S_ISLNK(status.st_mode) and not shared_file:
                os.chmod(path, wanted)


def is_writable(path: Path) -> bool:
    """Check whether this user may write into a folder, or create it if it is missing."""
    existing = nearest_existing(path)
    return not existing.is_dir() or os.access(existing, os.W_OK | os.X_OK)  # if it is a file, writing will report that


def check_writable(path: Path) -> None:
    """Check that this user may write into a folder, or create it.

    Raises:
        UserError: If the permissions or a read-only disk forbid it.
    """
    if is_writable(path):
        return
    existing = nearest_existing(path)
    status = existing.stat()
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        reason = "the disk is mounted read-only"
    elif status.st_uid == os.geteuid():
        reason = f"{existing} has the permissions {stat.S_IMODE(status.st_mode):o}"
    else:
        reason = f"{existing} belongs to {_user(status.st_uid)}, and this is {_user(os.geteuid())}"
    raise UserError(f"{path}: no permission to write: {reason}; give another --store, or ask for the permission")


def nearest_existing(path: Path) -> Path:
    """Find the path itself if it exists, or its nearest parent that does."""
    return next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
