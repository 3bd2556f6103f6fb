"""Read bytes of local shards from a file that is opened once, and of remote shards ahead in few large requests."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from vfm.data.reading.shard_cache import ShardCache
from vfm.storage import files
from vfm.storage.remote import read_spans
from vfm.storage.remote_spans import RemoteError, Span

MAX_GAP = 64 << 10  # unused bytes that are read to avoid a second request, which would take as long
JUMP = 8 << 10  # bytes to read after a jump: the headers of a sample's small members
LONGEST = 4 << 20  # most bytes to read at once in a sequential read


class OpenFile:
    """A local file, opened when it is first read and closed with this object."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = -1

    def __call__(self, start: int, stop: int) -> bytes:
        """Read bytes of the file, fewer if the file ends early.

        Raises:
            OSError: If the bytes cannot be read. The error names the file.
        """
        if self._file < 0:
            self._file = files.open_regular(self.path)
        try:
            return os.pread(self._file, stop - start, start)
        except OSError as error:  # the error of os.pread does not name the file
            raise OSError(error.errno, error.strerror, self.path) from None

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


Held = dict[str, list[tuple[Span, bytes | RemoteError]]]
"""Spans that have been read, with their bytes, by path."""


class ReadAhead:
    """Reads bytes of remote files from spans that were read ahead. Other bytes take a request each."""

    def __init__(self) -> None:
        self._held: Held = {}

    def hold(self, held: Held) -> None:
        """Replace the spans that were read ahead."""
        self._held = held

    def __call__(self, path: str, start: int, stop: int) -> bytes:
        """Read bytes of a file.

        Raises:
            RemoteError: If the bytes cannot be read.
        """
        for span, data in self._held.get(path, ()):
            if span.start <= start and stop <= span.stop:
                return _bytes(data)[start - span.start : stop - span.start]
        return _bytes(read_spans([Span(path, start, stop)])[0])


def _bytes(result: bytes | RemoteError) -> bytes:
    if isinstance(result, RemoteError):
        raise result
    return result


def read_together(spans: Iterable[Span], cache: ShardCache | None = None) -> Held:
    """Read the bytes of spans from copies in a cache, and the rest at once, with one request for close spans."""
    held: Held = {}
    missing = []
    for span in merged(spans):
        copied = cache.read(span) if cache else None
        if copied is not None:
            held.setdefault(span.path, []).append((span, copied))
        else:
            missing.append(span)
    for span, data in zip(missing, read_spans(missing), strict=True):
        held.setdefault(span.path, []).append((span, data))
    return held


def merged(spans: Iterable[Span], max_gap: int = MAX_GAP) -> list[Span]:
    """Merge the spans of a file that are at most `max_gap` bytes apart."""
    all_parts: list[Span] = []
    for _, group in groupby(sorted(spans), key=lambda span: span.path):
        parts: list[Span] = []
        for span in group:
            if parts and span.start - parts[-1].stop <= max_gap:
                parts[-1] = replace(parts[-1], stop=max(parts[-1].stop, span.stop))
            else:
                parts.append(span)
        all_parts += parts
    return all_parts


class RangeStream(io.RawIOBase):
    """A remote file of known size as a seekable stream for reading headers.

    Bytes that are not needed are skipped. A read far behind the last one requests a small range. While reads follow
    each other closely, ranges grow up to 4 MiB, because skipping a small image would take longer than reading it.
    """

    def __init__(self, path: str, size: int, read: Callable[[Sequence[Span]], list[bytes | RemoteError]] = read_spans):
        self.path = path
        self.size = size
        self._read = read
        self._position = self._start = 0
        self._buffer = b""
        self._step = JUMP

    def seekable(self) -> bool:
        """Allow seeking."""
        return True

    def readable(self) -> bool:
        """Allow reading."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position without reading."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Get the position of the next byte to read."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes, fewer at the end of the file.

        Raises:
            RemoteError: If the bytes cannot be read.
        """
        stop = self.size if size < 0 else min(self.size, self._position + size)
        if stop <= self._position:
            return b""
        if not (self._start <= self._position and stop <= self._start + len(self._buffer)):
            self._fill(stop)
        data = self._buffer[self._position - self._start : stop - self._start]
        self._position = stop
        return data

    def _fill(self, stop: int) -> None:
        end = self._start + len(self._buffer)
        follows = self._start <= self._position <= end + MAX_GAP
        self._step = min(LONGEST, 4 * self._step) if follows else JUMP
        start = self._position
        last = min(self.size, max(stop, start + self._step))
        rest = b""  # bytes from `start` on that are in the buffer already
        if self._start <= start < end:
            rest = self._buffer[start - self._start :]
        (data,) = self._read([Span(self.path, start + len(rest), last)])
        self._start = start
        self._buffer = rest + _bytes(data)
