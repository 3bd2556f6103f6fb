"""A bounded local copy of remote shards, shared by the processes of a machine.

A shard is downloaded whole, in the background, once its samples begin to be read; until then they come by ranges. Where
there is no room, the shards that were not read for longest are removed, but none that was read in the last minute: of
shards in use that do not fit, the rest stays remote, and nothing is downloaded in vain.
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
from vfm.storage.remote import RemoteError, Span, read_spans

IN_USE = 60.0  # seconds since a shard was read
TOUCH = 10.0  # seconds between two records of its use
PART = 8 << 20  # bytes of one request
PARTS_AT_A_TIME = 4
SUFFIX, PART_SUFFIX = ".shard", ".part"


@dataclass(frozen=True)
class CacheSettings:
    """Folder of the copies, and their largest size together in bytes."""

    folder: str
    max_bytes: int


def cache_of(loading: Loading) -> CacheSettings | None:
    """Return the cache that a configuration describes, None if it has none."""
    return CacheSettings(loading.cache_folder, int(loading.cache_gb * 1e9)) if loading.cache_gb else None


class ShardCache:
    """The copies in a folder. Processes may share it, also with other limits; each keeps to its own."""

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self.folder = Path(settings.folder).expanduser()
        self._touched: dict[str, float] = {}
        self._asked: dict[str, float] = {}  # when a copy was asked for
        self._queue: SimpleQueue[tuple[str, int, Path]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardCache, (self.settings,)

    def read(self, span: Span) -> bytes | None:
        """Return bytes of a shard; None if there is no copy yet, which is then made in the background."""
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
        """Return where the copy of a span's file is, or would be. Another version of a file has another place."""
        name = hashlib.blake2b(f"{span.path}\n{span.size}\n{span.version}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}{SUFFIX}"

    def download(self, path: str, size: int, copy: Path) -> bool:
        """Make a copy; False if there is no room, another process makes it, or the file cannot be read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = copy.with_suffix(PART_SUFFIX)
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # The process that held the lock before may have finished the copy, whose file this then is, or removed it.
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
            os.utime(copy)
            self._touched[copy.name] = now

    def _ask(self, path: str, size: int, copy: Path) -> None:
        now = time.time()
        if now - self._asked.get(copy.name, 0.0) < IN_USE or size > self.settings.max_bytes:
            return
        self._asked[copy.name] = now
        self._queue.put((path, size, copy))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shard-cache", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            path, size, copy = self._queue.get()
            with contextlib.suppress(OSError):  # without a copy the samples come by ranges
                self.download(path, size, copy)

    def _reserve(self, file: int, size: int, part: Path) -> bool:
        """Give a part its whole size, after removing others' copies if needed; False if there is no room."""
        with self._locked():
            found = list(self._others(part))
            total = size + sum(status.st_size for _, status in found)
            oldest = sorted(found, key=lambda pair: pair[1].st_mtime)
            for one, status in oldest:
                if total <= self.settings.max_bytes:
                    break
                if one.suffix == SUFFIX and time.time() - status.st_mtime > IN_USE:
                    one.unlink(missing_ok=True)
                    total -= status.st_size
            if total > self.settings.max_bytes:
                return False
            os.ftruncate(file, size)
            return True

    def _others(self, part: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the copies and the parts that other processes write, and remove parts that none writes."""
        for one in self.folder.iterdir():
            if one.suffix in (SUFFIX, PART_SUFFIX) and one != part and not _is_left(one):
                with contextlib.suppress(FileNotFoundError):  # another process finished or removed it meanwhile
                    yield one, one.stat()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_left(file: Path) -> bool:
    """Return whether a part has no process that writes it, and remove it then."""
    if file.suffix != PART_SUFFIX:
        return False
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, opened.fileno()):
                file.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:  # finished or removed meanwhile
        pass
    return True


def _is_at(path: Path, file: int) -> bool:
    """Return whether an open file still has this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _parts(path: str, start: int, stop: int) -> Iterator[tuple[Span, bytes]]:
    spans = [Span(path, place, min(stop, place + PART)) for place in range(start, stop, PART)]
    for span, data in zip(spans, read_spans(spans), strict=True):
        if isinstance(data, RemoteError):
            raise data
        yield span, data
