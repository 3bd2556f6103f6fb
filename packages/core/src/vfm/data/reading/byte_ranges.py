"""Bytes of shards: local ones from a file that is opened once, remote ones in few large requests ahead of their use."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from vfm.data.reading.shard_cache import ShardCache
from vfm.storage import files
from vfm.storage.remote import RemoteError, Span, read_spans

MAX_GAP = 64 << 10  # unused bytes that are read to avoid a second request: they take as long as one
JUMP = 8 << 10  # bytes that are read behind a jump: the headers of a sample's small members
LONGEST = 4 << 20  # bytes that are read at once where no jump is worth it


class OpenFile:
    """A local file, opened at its first read and closed with this object."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = -1

    def __call__(self, start: int, stop: int) -> bytes:
        """Return bytes of the file, fewer if it ends before.

        Raises:
            OSError: they cannot be read; it names the file.
        """
        if self._file < 0:
            self._file = files.open_regular(self.path)
        try:
            return os.pread(self._file, stop - start, start)
        except OSError as error:  # which does not name the file
            raise OSError(error.errno, error.strerror, self.path) from None

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


Held = dict[str, list[tuple[Span, bytes | RemoteError]]]
"""Spans that were read, with their bytes, by path."""


class ReadAhead:
    """Reads bytes of remote files: those of the samples that come next are held, others take a request each."""

    def __init__(self) -> None:
        self._held: Held = {}

    def hold(self, held: Held) -> None:
        """Hold spans that were read, in place of those before."""
        self._held = held

    def __call__(self, path: str, start: int, stop: int) -> bytes:
        """Return bytes of a file.

        Raises:
            RemoteError: they cannot be read.
        """
        wanted = Span(path, start, stop)
        around = (one for one in self._held.get(path, ()) if one[0].start <= start and stop <= one[0].stop)
        span, data = next(around, None) or (wanted, read_spans([wanted])[0])
        if isinstance(data, RemoteError):
            raise data
        return data[start - span.start : stop - span.start]


def read_together(spans: Iterable[Span], cache: ShardCache | None = None) -> Held:
    """Return the bytes of spans: from copies in a cache, the rest at once, close ones of a file in one request."""
    held: Held = {}
    missing = []
    for span in merged(spans):
        if cache and (copied := cache.read(span)) is not None:
            held.setdefault(span.path, []).append((span, copied))
        else:
            missing.append(span)
    for span, data in zip(missing, read_spans(missing), strict=True):
        held.setdefault(span.path, []).append((span, data))
    return held


def merged(spans: Iterable[Span], max_gap: int = MAX_GAP) -> list[Span]:
    """Return spans that cover the given ones; those of one file that are at most `max_gap` bytes apart become one."""
    found: list[Span] = []
    for _, group in groupby(sorted(spans), key=lambda span: span.path):
        parts: list[Span] = []
        for span in group:
            if parts and span.start - parts[-1].stop <= max_gap:
                parts[-1] = replace(parts[-1], stop=max(parts[-1].stop, span.stop))
            else:
                parts.append(span)
        found += parts
    return found


class RangeStream(io.RawIOBase):
    """A remote file of known size as a seekable stream, for reading headers: jumps over what is not read.

    A read far behind the last one takes a small range; as long as reads follow each other closely, ranges grow up to
    4 MiB, since skipping a small picture would take longer than reading it.
    """

    def __init__(self, path: str, size: int, read: Callable[[Sequence[Span]], list[bytes | RemoteError]] = read_spans):
        self.path, self.size, self._read = path, size, read
        self._place = self._start = 0
        self._buffer = b""
        self._step = JUMP

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place; nothing is read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the place of the next byte to read."""
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer at the end of the file.

        Raises:
            RemoteError: they cannot be read.
        """
        stop = self.size if size < 0 else min(self.size, self._place + size)
        if stop <= self._place:
            return b""
        if not (self._start <= self._place and stop <= self._start + len(self._buffer)):
            self._fill(stop)
        data = self._buffer[self._place - self._start : stop - self._start]
        self._place = stop
        return data

    def _fill(self, stop: int) -> None:
        end = self._start + len(self._buffer)
        follows = self._start <= self._place <= end + MAX_GAP
        self._step = min(LONGEST, 4 * self._step) if follows else JUMP
        start = self._place
        last = min(self.size, max(stop, start + self._step))
        kept = self._buffer[start - self._start :] if self._start <= start < end else b""
        (data,) = self._read([Span(self.path, start + len(kept), last)])
        if isinstance(data, RemoteError):
            raise data
        self._start, self._buffer = start, kept + data
