"""A cache of remote shards with a size limit, shared by the processes of a machine.

When the first samples of a shard are read, the whole shard is downloaded in the background. Until then, its samples are
read by ranges. If there is no room, the least recently used shards are removed, but no shard that was read in the last
minute. So if the shards in use do not fit, the rest stays remote, and no download is wasted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from vfm.interfaces import Loading
from vfm.storage import files
from vfm.storage.remote import read_spans
from vfm.storage.remote_spans import RemoteError, Span

IN_USE = 60.0  # seconds after a read during which a shard counts as in use
TOUCH = 10.0  # seconds between two records of a shard's use
PART = 8 << 20  # bytes of one request
PARTS_AT_A_TIME = 4  # requests to a remote store that run together
SUFFIX = ".shard"
PART_SUFFIX = ".part"


@dataclass(frozen=True)
class CacheSettings:
    """Folder of the copies, and their maximum total size in bytes."""

    folder: str
    max_bytes: int


def cache_of(loading: Loading) -> CacheSettings | None:
    """Read the cache settings in a configuration, if it has a cache."""
    if not loading.cache_gb:
        return None
    return CacheSettings(loading.cache_folder, int(loading.cache_gb * 1e9))


class ShardCache:
    """The copies in a folder. Processes may share it with different limits, and each observes its own limit."""

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self.folder = Path(settings.folder).expanduser()
        self._touched: dict[str, float] = {}
        self._asked: dict[str, float] = {}  # time of the request for a copy
        self._queue: SimpleQueue[tuple[str, int, Path]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardCache, (self.settings,)

    def read(self, span: Span) -> bytes | None:
        """Read bytes of a shard from its copy. If there is no copy, return None and make one in the background."""
        copy = self.place(span)
        with contextlib.suppress(OSError):
            file = files.open_regular(str(copy))
            try:
                self._touch(copy)
                if os.fstat(file).st_size == span.size:
                    return os.pread(file, span.stop - span.start, span.start)
            finally:
                os.close(file)
        self._ask(span.path, span.size, copy)
        return None

    def place(self, span: Span) -> Path:
        """Build the path of the copy of a span's file. Different versions of a file have different paths."""
        name = hashlib.blake2b(f"{span.path}\n{span.size}\n{span.version}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}{SUFFIX}"

    def download(self, path: str, size: int, copy: Path) -> bool:
        """Copy a shard into the cache.

        Args:
            path: Address of the shard.
            size: Size in bytes.
            copy: Path of the copy.

        Returns:
            False if there is no room, another process is copying it, or the file cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        part = copy.with_suffix(PART_SUFFIX)
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # The process that held the lock before may have renamed this file to the copy, or removed it.
            if not _is_at(part, file.fileno()):
                return copy.exists()
            if copy.exists() or not self._reserve(file.fileno(), size, part):
                part.unlink(missing_ok=True)
                return copy.exists()
            try:
                for start in range(0, size, PART * PARTS_AT_A_TIME):
                    stop = min(size, start + PART * PARTS_AT_A_TIME)
                    for span, data in _parts(path, start, stop):
                        if os.pwrite(file.fileno(), data, span.start) < len(data):
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
                os.fsync(file.fileno())
                os.replace(part, copy)
            except OSError:  # RemoteError too
                part.unlink(missing_ok=True)
                return False
        return True

    def _touch(self, copy: Path) -> None:
        now = time.time()
        if now - self._touched.get(copy.name, 0.0) > TOUCH:
            os.utime(copy)  # copies are removed in the order of these times
            self._touched[copy.name] = now

    def _ask(self, path: str, size: int, copy: Path) -> None:
        now = time.time()
        if now - self._asked.get(copy.name, 0.0) < IN_USE or size > self.settings.max_bytes:
            return
        self._asked[copy.name] = now
        self._queue.put((path, size, copy))
        if self._thread is None or not self._thread.is_alive():  # a forked process has no thread of its parent
            self._thread = threading.Thread(target=self._work, name="shard-cache", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            path, size, copy = self._queue.get()
            with contextlib.suppress(OSError):  # without a copy, the samples are read by ranges
                self.download(path, size, copy)

    def _reserve(self, file: int, size: int, part: Path) -> bool:
        """Reserve the whole size for a part, after removing old copies if needed. False if there is no room."""
        with self._locked():
            others = list(self._others(part))
            total = size + sum(status.st_size for _, status in others)
            oldest_first = sorted(others, key=lambda other: other[1].st_mtime)
            for other, status in oldest_first:
                if total <= self.settings.max_bytes:
                    break
                if other.suffix == SUFFIX and time.time() - status.st_mtime > IN_USE:
                    other.unlink(missing_ok=True)
                    total -= status.st_size
            if total > self.settings.max_bytes:
                return False
            os.ftruncate(file, size)
            return True

    def _others(self, part: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the copies and the parts that other processes are writing. Remove abandoned parts."""
        for file in self.folder.iterdir():
            if file.suffix in (SUFFIX, PART_SUFFIX) and file != part and not _is_left(file):
                with contextlib.suppress(FileNotFoundError):  # another process finished or removed it meanwhile
                    yield file, file.stat()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_left(file: Path) -> bool:
    """Check whether no process is writing a part, and remove it in that case."""
    if file.suffix != PART_SUFFIX:
        return False
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, opened.fileno()):
                file.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:  # another process finished or removed it meanwhile
        pass
    return True


def _is_at(path: Path, file: int) -> bool:
    """Check whether an open file still has this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _parts(path: str, start: int, stop: int) -> Iterator[tuple[Span, bytes]]:
    spans = [Span(path, first, min(stop, first + PART)) for first in range(start, stop, PART)]
    for span, data in zip(spans, read_spans(spans), strict=True):
        if isinstance(data, RemoteError):
            raise data
        yield span, data
