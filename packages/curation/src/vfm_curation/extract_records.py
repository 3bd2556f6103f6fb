"""Reads the records of a WARC or WAT file. A broken member or a gap loses its own record; reading resumes after it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from vfm.plugin import UserError, files

GZIP, PLAIN = b"\x1f\x8b\x08", b"WARC/1."  # the first bytes of a record: a gzip member of its own, or plain
CHUNK = 1 << 20
COMPRESSED_CHUNK = 1 << 16  # may expand a thousand times
OnBad = Callable[[str, str], None]


def read_records(path: str, on_bad: OnBad) -> Iterator[tuple[Any, bytes]]:
    """Yield the records of a file, each with its content.

    Args:
        path: a file, compressed record by record as Common Crawl's are, or plain; local or remote.
        on_bad: called with (reason, where) for each break: everything between two whole records counts once.

    Yields:
        (fastwarc's record, its content); the record's own reader is at its end.

    Raises:
        UserError: reading fails, for instance because a connection is lost; a part of the file must not be published.
    """
    from fastwarc.warc import ArchiveIterator  # the extra `crawl`

    with files.open_binary(path) as opened:
        stream = _Reads(opened, path)
        mark = GZIP if path.endswith(".gz") or stream.read(len(GZIP)) == GZIP else PLAIN
        start: int | None = 0
        whole = True  # whether the last record read was whole
        while start is not None:
            stream.seek(start)
            end: int | None = start  # of the last whole record; None if nothing can follow it
            try:
                for record in ArchiveIterator(stream, parse_http=False):
                    start = record.stream_pos
                    content = record.reader.read()
                    # fastwarc yields a record whose header is cut before its length as one without content.
                    if len(content) < record.content_length or not record.headers.get("Content-Length"):
                        raise EOFError
                    whole, end = True, None
                    yield record, content
                # It also ends in silence at a member that is cut within the first lines of its record.
                if mark == GZIP and end is None:
                    end = _end_of_member(stream, start)
                if end is None or not stream.read_from(end):
                    return
                start = end
                raise EOFError
            except UserError:
                raise
            except (OSError, EOFError, ValueError):  # raised by fastwarc: these bytes are not a record
                if whole:
                    on_bad("broken_record", f"{path}: byte {start}")
                whole = False
            start = _find(stream, mark, start + 1)


class _Reads:
    """A stream that raises UserError for its own failures, so that they differ from fastwarc's on broken records."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self.stream, self.path = stream, path
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read_from(self, start: int) -> bytes:
        self.seek(start)
        return self.read(1)

    def read(self, size: int = -1) -> bytes:
        try:
            return self.stream.read(size)
        except Exception as error:  # every remote store has its own errors
            raise UserError(f"{self.path}: cannot be read: {error or type(error).__name__}") from error


def _end_of_member(stream: _Reads, start: int) -> int | None:
    """Return where the gzip member at a position ends; None if it does not, or there is no member."""
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    stream.seek(start)
    while chunk := stream.read(COMPRESSED_CHUNK):
        start += len(chunk)
        try:
            inflate.decompress(chunk)
        except zlib.error:
            return None
        if inflate.eof:
            return start - len(inflate.unused_data)
    return None


def _find(stream: _Reads, mark: bytes, start: int) -> int | None:
    """Return the position of the next mark, or None."""
    while True:
        stream.seek(start)
        chunk = stream.read(CHUNK)
        if (place := chunk.find(mark)) >= 0:
            return start + place
        if len(chunk) < CHUNK:
            return None
        start += CHUNK - len(mark) + 1  # a mark may cross the end of the chunk
