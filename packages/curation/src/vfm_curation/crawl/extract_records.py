"""Read the records of a WARC or WAT file. A broken member or a gap loses its own record, then reading continues."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from vfm.plugin import UserError, files

GZIP, PLAIN = b"\x1f\x8b\x08", b"WARC/1."  # the first bytes of a record: a gzip member of its own, or plain
CHUNK = 1 << 20  # bytes
COMPRESSED_CHUNK = 1 << 16  # may expand a thousand times
RECORD_END = b"\r\n\r\n"
HEADER_CHUNK, MAX_HEADER = 1 << 13, 1 << 20  # bytes; a longer header is damaged
OnBad = Callable[[str, str], None]
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_VERSION_LINE = re.compile(rb"WARC/1\.\d\r?\n")
_LENGTH = re.compile(rb"^Content-Length:[ \t]*(\d{1,18})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


def read_records(path: str, on_bad: OnBad) -> Iterator[tuple[Any, bytes]]:
    """Yield the records of a file, each with its content.

    Args:
        path: Local or remote file, compressed record by record like Common Crawl's files, or plain.
        on_bad: Called with (reason, where) for each break. Everything between two whole records counts once.

    Yields:
        (fastwarc's record, its content). The record's own reader is at its end. The content of a compressed record
        agrees with its checksum.

    Raises:
        UserError: If reading fails, for instance because a connection is lost. A part of the file must not be
            published.
    """
    with files.open_binary(path) as opened:
        stream = _Reads(opened, path)
        compressed = path.endswith(".gz") or stream.read(len(GZIP)) == GZIP
        start: int | None = 0
        whole = True  # whether the last record read was whole
        while start is not None:
            part = _Member(stream, start) if compressed else _Plain(stream, start)
            try:
                for record, content in part.records():
                    whole = True
                    yield record, content
                start = part.end
            except UserError:
                raise
            except (OSError, EOFError, ValueError, zlib.error):  # these bytes are not a record
                if whole:
                    on_bad("broken_record", f"{path}: byte {part.start}")
                whole = False
                # Not the end of the record, which a damaged one does not know.
                start = _find(stream, GZIP if compressed else PLAIN, part.start + 1)


class _Reads:
    """A stream that raises UserError for its own failures, so that they differ from fastwarc's on broken records."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self.stream = stream
        self.path = path
        self.seek = stream.seek
        self.tell = stream.tell
        self.close = stream.close

    def read_from(self, start: int) -> bytes:
        self.seek(start)
        return self.read(1)

    def read(self, size: int = -1) -> bytes:
        try:
            return self.stream.read(size)
        except Exception as error:  # every remote store has its own errors
            raise UserError(f"{self.path}: cannot be read: {error or type(error).__name__}") from error


class _Plain:
    """One record of a plain stream. Only its structure shows whether it is whole.

    A record that is cut continues with the bytes of the next record. If it is cut within its header, the two headers
    become one. If it is cut within its content, the length includes the beginning of the next record. So a header must
    not hold another version line, and content must be followed by line breaks or, where these are lost, by the next
    record or the end of the file.

    Attributes:
        start: Position where the record starts.
        end: Position where it ends, set once it is read. None at the end of the file.
    """

    def __init__(self, stream: _Reads, start: int) -> None:
        self.stream = stream
        self.start = start
        self.end: int | None = None

    def records(self) -> Iterator[tuple[Any, bytes]]:
        """Yield the record with its content. At the end of the file there is none."""
        header = self._header()
        if not header:
            return
        length = _LENGTH.search(header)
        if not length or _is_merged(header):
            raise EOFError
        self.stream.seek(self.start + len(header))
        content = self.stream.read(int(length[1]))
        after = self.stream.read(len(RECORD_END) + len(PLAIN))
        rest = after.lstrip(b"\r\n")
        if len(content) < int(length[1]) or not (after.startswith(RECORD_END) or rest[: len(PLAIN)] in (b"", PLAIN)):
            raise EOFError
        last = content[content.rfind(PLAIN) :]
        if _VERSION_LINE.match(last) and not _HEADER_END.search(last):
            raise EOFError  # cut so that the length ends with the next record's header
        end = self.start + len(header) + len(content) + len(after) - len(rest)
        for record in _archive(io.BytesIO(header + content + RECORD_END)):
            yield record, _content(record)
        self.end = end if self.stream.read_from(end) else None

    def _header(self) -> bytes:
        """Read the version line and the fields up to the empty line."""
        self.stream.seek(self.start)
        header = b""
        while not (end := _HEADER_END.search(header)):
            more = self.stream.read(HEADER_CHUNK)
            if not more and not header:
                return b""
            lines = (header + more).lstrip(b"\r\n")  # more empty lines than the two behind a record
            self.start += len(header) + len(more) - len(lines)
            header = lines
            if not more or len(header) > MAX_HEADER or header[: len(PLAIN)] != PLAIN[: len(header)]:
                raise EOFError
        return header[: end.end()]


def _is_merged(header: bytes) -> bool:
    """Check whether a header continues with another record's header.

    Such a header has a second version line, perhaps glued to a field that was cut. A field whose value only ends like a
    version line, such as an address, does not occur again behind it.
    """
    for version in _VERSION_LINE.finditer(header, 1):
        field, colon, _ = header[header.rfind(b"\n", 0, version.start()) + 1 : version.start()].partition(b":")
        if not colon or b"\n" + field.lower() + b":" in header[version.end() - 1 :].lower():
            return True
    return False


class _Member:
    """The records of a gzip member, and the stream of its inflated bytes that fastwarc reads.

    fastwarc can inflate, but its reader does not compare the checksum at a member's end. A cut member could then
    continue with the bytes of the next member, up to a record of full length with wrong content.

    Attributes:
        start: Position where the member starts.
        end: Position where it ends, set once its records are read. None at the end of the file.
    """

    def __init__(self, stream: _Reads, start: int) -> None:
        self.stream = stream
        self.start = start
        self.end: int | None = None
        self.inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self.num_read = self.num_inflated = 0

    def records(self) -> Iterator[tuple[Any, bytes]]:
        """Yield each record with its content, the last one only after the checksum is verified."""
        self.stream.seek(self.start)
        held = None
        for record in _archive(self):
            if held:
                yield held
            held = record, _content(record)
        while self.read(CHUNK):  # fastwarc may end silently before a member does
            pass
        end = self.start + self.num_read - len(self.inflate.unused_data)
        if held:
            yield held
        elif self.num_inflated:
            raise EOFError("a member without a record")
        self.end = end if self.stream.read_from(end) else None

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` inflated bytes. At the member's end there are none."""
        while not self.inflate.eof:
            chunk = self.inflate.unconsumed_tail or self.stream.read(COMPRESSED_CHUNK)
            if not self.inflate.unconsumed_tail:
                self.num_read += len(chunk)
                if not chunk:
                    raise EOFError
            inflated = self.inflate.decompress(chunk, max(size, 0))
            if inflated:
                self.num_inflated += len(inflated)
                return inflated
        return b""

    def tell(self) -> int:
        """Count the inflated bytes that were read."""
        return self.num_inflated


def _archive(stream: Any) -> Iterator[Any]:
    from fastwarc.warc import ArchiveIterator  # the extra `crawl`

    return iter(ArchiveIterator(stream, parse_http=False))


def _content(record: Any) -> bytes:
    content: bytes = record.reader.read()
    # fastwarc yields a record whose header is cut before its length as one without content.
    if len(content) < record.content_length or not record.headers.get("Content-Length"):
        raise EOFError
    return content


def _find(stream: _Reads, mark: bytes, start: int) -> int | None:
    """Find the position of the next mark, or None."""
    while True:
        stream.seek(start)
        chunk = stream.read(CHUNK)
        offset = chunk.find(mark)
        if offset >= 0:
            return start + offset
        if len(chunk) < CHUNK:
            return None
        start += CHUNK - len(mark) + 1  # a mark may cross the end of the chunk
