"""Permissions of what is published: as the umask says, whatever library wrote it."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def share_as_umask_says(folder: Path) -> None:
    """Give everything in a folder the permissions of new files.

    safetensors and others write a temporary file that only its owner may read, and rename it, so that the models of a
    shared store would be closed to everybody else. The folder must have been made by `mkdir`: its own permissions are
    those that the umask and the parent's defaults left.

    Args:
        folder: the folder. Permissions are added, never taken away; links are not followed.
    """
    allowed = folder.stat().st_mode & 0o777
    for place, folders, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in (*folders, *names)):
            status = os.lstat(path)
            wanted = stat.S_IMODE(status.st_mode) | (allowed if stat.S_ISDIR(status.st_mode) else allowed & 0o666)
            shared_file = stat.S_ISREG(status.st_mode) and status.st_nlink > 1  # somebody else's file too
            if wanted != stat.S_IMODE(status.st_mode) and not stat.S_ISLNK(status.st_mode) and not shared_file:
                os.chmod(path, wanted)
