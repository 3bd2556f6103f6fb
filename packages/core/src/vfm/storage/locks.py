"""Locks on files that name their holder. The kernel releases such a lock (`flock`) when its holder dies.

In a shared folder, another user may have put a link in place of a lock file. So links are not followed, and only a
regular file is locked: the target of a link is never written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vfm.base import UserError

PATIENCE = 5.0  # seconds that `exclusive` waits before it calls `on_wait`


@contextmanager
def locked(file: Path, name: str, on_wait: Callable[[str], None] = lambda message: None) -> Iterator[int]:
    """Hold the lock of a file, after waiting for any other holder, and yield its descriptor.

    Args:
        file: The lock, created if it is missing. Its folder must exist.
        name: What is locked, for messages.
        on_wait: Called with a message that names the other holder.

    Raises:
        UserError: If the file is a link, or not a regular file.
    """
    descriptor = _acquire(file, name, on_wait)
    try:
        left = os.pread(descriptor, 400, 0).decode(errors="replace")  # a holder that ended normally empties the file
        if left:
            on_wait(f"taking over {name}: it was {left}, which has ended")
        _write(descriptor, f"held by process {os.getpid()} on {socket.gethostname()} since {_now()}")
        yield descriptor
    finally:
        _write(descriptor, "")
        os.close(descriptor)


@contextmanager
def shared(file: Path) -> Iterator[None]:
    """Hold the lock of a file together with other sharers, after waiting for a holder who does not share it.

    Args:
        file: The lock, created if it is missing. Its folder must exist.

    Raises:
        UserError: If the file is a link, or not a regular file.
    """
    descriptor = _open(file, os.O_RDWR | os.O_CREAT)
    try:
        share_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def share_lock(descriptor: int) -> None:
    """Hold the lock of an open file together with other sharers, until the file is closed."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def open_lock(file: Path) -> int:
    """Open a lock file for `exclusive`, creating it if it is missing, and return its descriptor.

    Raises:
        UserError: If it is a link, or not a regular file.
    """
    return _open(file, os.O_RDWR | os.O_CREAT)


@contextmanager
def exclusive(descriptor: int, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of an open file alone, after waiting for any other holder: for work of milliseconds.

    Nothing is written into the file, since this is done for each event, also on a full disk.

    Args:
        descriptor: The file, from `open_lock`.
        on_wait: Called once in another thread after `PATIENCE` seconds of waiting, for a suspended process for example.
    """
    if not _try_lock(descriptor):
        timer = threading.Timer(PATIENCE, on_wait)
        timer.daemon = True
        timer.start()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        finally:
            timer.cancel()
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_locked(file: Path) -> bool:
    """Check whether a process holds the lock of a file, alone or shared.

    Raises:
        UserError: If the file is a link, or not a regular file.
    """
    try:
        descriptor = _open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def is_lock_of(descriptor: int, file: Path) -> bool:
    """Check whether a descriptor is of the current lock file.

    A cleanup may have removed and replaced the file.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def _acquire(file: Path, name: str, on_wait: Callable[[str], None]) -> int:
    reported = ""
    while True:
        descriptor = _open(file, os.O_RDWR | os.O_CREAT)
        if _try_lock(descriptor) and is_lock_of(descriptor, file):
            return descriptor
        # A holder that ends empties the file before it releases the lock.
        holder = os.pread(descriptor, 400, 0).decode(errors="replace") or reported or "held by another process"
        os.close(descriptor)
        if holder != reported:
            on_wait(f"waiting for {name}: {holder}")
            reported = holder
        time.sleep(0.2)


def _open(file: Path, flags: int) -> int:
    """Open a lock file. O_NONBLOCK, since opening a FIFO would wait for its other end.

    Raises:
        UserError: If it is a link, or not a regular file.
    """
    safe = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file, flags | safe, 0o666)
    except PermissionError:  # another user's file: it can be locked, but not written
        if not os.path.lexists(file):
            raise
        descriptor = os.open(file, os.O_RDONLY | safe)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO):
            raise
        raise _refused(file) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refused(file)
    return descriptor


def _refused(file: Path) -> UserError:
    kind = "a link" if file.is_symlink() else "something else"
    return UserError(f"{file}: expected a regular file as the lock, got {kind}; remove it if nobody needs it")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, text: str) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
