"""The records of a WARC or WAT file. A broken member or a cut costs its own record: reading goes on behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

from vfm.config import UserError
from vfm.data import files

GZIP, PLAIN = b"\x1f\x8b\x08", b"WARC/1."  # how a record begins: as a gzip member of its own, or as it is
CHUNK = 1 << 20
OnBad = Callable[[str, str], None]


def read_records(path: str, on_bad: OnBad) -> Iterator[tuple[Any, bytes]]:
    """The records of a file, each with its content.

    Args:
        path: a file, compressed record by record as Common Crawl's are, or plain; local or remote.
        on_bad: told (reason, where) of each break: all that lies between one whole record and the next counts once.

    Yields:
        (fastwarc's record, its content); the record's own reader is at its end.

    Raises:
        UserError: the file cannot be read on, as where a connection falls; nothing of it is to be published then.
    """
    from fastwarc.warc import ArchiveIterator

    with files.open_binary(path) as opened:
        stream = _Reads(opened, path)
        mark = GZIP if path.endswith(".gz") or stream.read(len(GZIP)) == GZIP else PLAIN
        start: int | None = 0
        whole = True  # what was read last
        while start is not None:
            stream.seek(start)
            try:
                for record in ArchiveIterator(stream, parse_http=False):
                    start = record.stream_pos
                    content = record.reader.read()
                    if len(content) < record.content_length:
                        raise EOFError
                    whole = True
                    yield record, content
                return
            except UserError:
                raise
            except (OSError, EOFError, ValueError):  # fastwarc's: what was read is no record
                if whole:
                    on_bad("broken_record", f"{path}: byte {start}")
                whole = False
            start = _find(stream, mark, start + 1)


class _Reads:
    """A stream whose own failures differ from those of what is read."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self.stream, self.path = stream, path
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        try:
            return self.stream.read(size)
        except Exception as error:  # each store has errors of its own
            raise UserError(f"{self.path}: cannot be read: {error or type(error).__name__}") from error


def _find(stream: _Reads, mark: bytes, start: int) -> int | None:
    """Where the mark stands next."""
    while True:
        stream.seek(start)
        chunk = stream.read(CHUNK)
        if (place := chunk.find(mark)) >= 0:
            return start + place
        if len(chunk) < CHUNK:
            return None
        start += CHUNK - len(mark) + 1
