"""A file whose bytes arrive in parts that are requested before they are needed."""

from __future__ import annotations

import io
import os
from concurrent.futures import Future

from vfm.base import UserError
from vfm.storage import files
from vfm.storage.remote import begin_span
from vfm.storage.remote_spans import RemoteError, Span

PART = 1 << 20  # bytes of one request


class Arriving(io.RawIOBase):
    """A file as a seekable stream, whose parts can be requested before they are needed, and are dropped after it.

    Args:
        whole: All bytes of the file, with its version.
    """

    def __init__(self, whole: Span) -> None:
        self.whole, self.size = whole, whole.stop
        self._position = 0
        self._first = 0  # parts before it were dropped
        self._next = 0  # the first part that has not been requested
        self._coming: dict[int, Future[bytes | RemoteError]] = {}
        self._parts: dict[int, bytes] = {}

    def request(self, stop: int) -> None:
        """Request the parts that begin before a byte and have not been requested."""
        for number in range(self._next, -(-min(stop, self.size) // PART)):
            self._want(number)

    def between(self, start: int, stop: int) -> bytes:
        """Read bytes, fewer at the end of the file.

        Raises:
            UserError: If the bytes cannot be read.
        """
        number, offset = divmod(start, PART)
        stop = min(stop, self.size)
        if stop <= (number + 1) * PART:
            return self._part(number)[offset : offset + stop - start] if start < stop else b""
        numbers = range(number, -(-stop // PART))
        for each in numbers:  # all are requested before the first one is awaited
            self._want(each)
        return b"".join(map(self._part, numbers))[offset : offset + stop - start]

    def drop(self, before: int) -> None:
        """Drop the parts that end before a byte."""
        while (self._first + 1) * PART <= before:
            self._parts.pop(self._first, None)
            self._coming.pop(self._first, None)  # a large member that was jumped over
            self._first += 1

    def seekable(self) -> bool:
        """Allow seeking."""
        return True

    def readable(self) -> bool:
        """Allow reading."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position without reading."""
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence])
        return self._position

    def tell(self) -> int:
        """Get the position of the next byte to read."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes, fewer at the end of the file.

        Raises:
            UserError: If the bytes cannot be read.
        """
        data = self.between(self._position, self.size if size < 0 else self._position + size)
        self._position += len(data)
        return data

    def _part(self, number: int) -> bytes:
        part = self._parts.get(number)
        if part is None:
            self._want(number)
            part = _bytes(self._coming.pop(number).result())
            if number >= self._first:
                self._parts[number] = part
        return part

    def _want(self, number: int) -> None:
        """Request a part, unless it was requested and is not dropped."""
        if number not in self._parts and number not in self._coming:
            self._coming[number] = self._begin(number)
        self._next = max(self._next, number + 1)

    def _begin(self, number: int) -> Future[bytes | RemoteError]:
        start, stop = number * PART, min(self.size, (number + 1) * PART)
        path, size, version = self.whole.path, self.whole.size, self.whole.version
        if files.is_remote(path):
            return begin_span(Span(path, start, stop, size, version))
        future: Future[bytes | RemoteError] = Future()
        future.set_result(files.read_bytes(path, start, stop))
        return future


def _bytes(result: bytes | RemoteError) -> bytes:
    if isinstance(result, RemoteError):
        raise UserError(f"{result}; the next run continues from the last checkpoint")
    return result
