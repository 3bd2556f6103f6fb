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
PART = 8 << 20  # bytes of one request, of the several into which a large range is split


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


class RangeFile(io.RawIOBase):
    """Read a remote file of known size as a seekable stream, requesting only the bytes that are read.

    Args:
        path: Address of the file.
        size: Size in bytes.
        read: Reads spans.
        version: Identifies the content of the file. Another version is an error.
    """

    def __init__(
        self,
        path: str,
        size: int,
        read: Callable[[Sequence[Span]], list[bytes | RemoteError]] = read_spans,
        version: int = 0,
    ) -> None:
        self.path = path
        self.size = size
        self._read = read
        self._version = version
        self._position = 0

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
        start = self._position
        stop = self.size if size < 0 else min(self.size, start + size)
        if stop <= start:
            return b""
        data = self._between(start, stop)
        self._position = stop
        return data

    def _between(self, start: int, stop: int) -> bytes:
        """Read a range. The parts of a large one are requested together."""
        spans = []
        for first in range(start, stop, PART):
            spans.append(Span(self.path, first, min(stop, first + PART), self.size, self._version))
        return b"".join(map(_bytes, self._read(spans)))


class RangeStream(RangeFile):
    """Read the headers in a remote file of known size through a seekable stream.

    Bytes that are not needed are skipped. A read far behind the last one requests a small range. While reads follow
    each other closely, ranges grow up to 4 MiB, because skipping a small image would take longer than reading it.
    """

    def __init__(self, path: str, size: int, read: Callable[[Sequence[Span]], list[bytes | RemoteError]] = read_spans):
        super().__init__(path, size, read)
        self._start = 0
        self._buffer = b""
        self._step = JUMP

    def _between(self, start: int, stop: int) -> bytes:
        if not (self._start <= start and stop <= self._start + len(self._buffer)):
            self._fill(start, stop)
        return self._buffer[start - self._start : stop - self._start]

    def _fill(self, start: int, stop: int) -> None:
        end = self._start + len(self._buffer)
        follows = self._start <= start <= end + MAX_GAP
        self._step = min(LONGEST, 4 * self._step) if follows else JUMP
        last = min(self.size, max(stop, start + self._step))
        rest = b""  # bytes from `start` on that are in the buffer already
        if self._start <= start < end:
            rest = self._buffer[start - self._start :]
        (data,) = self._read([Span(self.path, start + len(rest), last)])
        self._start = start
        self._buffer = rest + _bytes(data)
