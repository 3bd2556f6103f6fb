"""Iterate over the headers of a tar. After a damaged header, reading resumes at the next valid header."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

from vfm.base import UserError

BLOCK = 512  # bytes. Headers and data begin at multiples of it
MAGIC = b"ustar"
MAGIC_OFFSET = 257
SIZE_FIELD = slice(124, 135)  # octal digits
CHECKSUM_FIELD = slice(148, 156)
PREFIX_OFFSET = 345  # byte of the prefix of a long name
TYPE_OFFSET, EXTENDED = 156, (b"x", b"g", b"L", b"K")  # types of headers that belong to the next header
CHUNK = 1 << 20
LONGEST_PREFIX = 256 << 20  # bytes that must contain the first valid header, otherwise the file is not a tar
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class Gap:
    """A range of bytes with at least one damaged header, or without members: zeros at the end of a tar.

    Attributes:
        start: First byte, the damaged header.
        stop: Next valid header, or the end of the file.
        names: Names in consecutive damaged headers whose sizes lead from one to the next. One name may be wrong.
        rest: Number of bytes after the members of these headers, where no size leads to another header.
        shifted: Names in valid headers within the rest, moved off their blocks by lost or inserted bytes.
        use: `damaged_header`, or what the range is.
    """

    start: int
    stop: int
    names: tuple[str, ...] = ()
    rest: int = 0
    shifted: tuple[str, ...] = ()
    use: Literal["damaged_header", "end_of_archive", "incomplete_block"] = "damaged_header"


class TarMembers:
    """Iterates over the members and gaps of a tar.

    Afterwards `complete` is False if the file does not end with a block of zeros. This block marks the end of a tar.

    Attributes:
        stop: Byte after the last member and its padding, or after the last gap. The next one begins there, with all of
            its headers (of pax and GNU).
        size: Size of the file in bytes.
    """

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self.stream = stream
        self.path = path
        self.complete = False
        self.stop = 0
        self.size = stream.seek(0, 2)

    def __iter__(self) -> Iterator[tarfile.TarInfo | Gap]:
        """Yield members and gaps in the order of the file.

        Raises:
            UserError: If the file is not an uncompressed tar.
        """
        any_member = False
        while True:
            for plain in self._plain(self.stop):
                any_member = True
                yield plain
            tar: tarfile.TarFile | None = None
            skip = 0
            self.stream.seek(self.stop)
            try:
                # Not closed, because it owns nothing but the stream.
                tar = tarfile.open(fileobj=self.stream, mode="r:", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
                    any_member = True
                    self.stop = tar.offset
                    yield member
            except (tarfile.TarError, ValueError, IndexError, OverflowError):
                # A valid header that belongs to a damaged header must not be tried again.
                skip = BLOCK if _is_header(self._block(self.stop)) else 0
            if not any_member:
                self._check_start(self.stop + skip)
            gap = self._gap(self.stop, skip)
            if gap.start < gap.stop:
                self.stop = gap.stop
                yield gap
            if gap.stop >= self.size:
                return

    def _plain(self, offset: int) -> Iterator[tarfile.TarInfo]:
        """Yield members while their headers are plain. tarfile reads every header, but takes five times as long."""
        while (member := plain_member(self._block(offset))) is not None:
            member.offset = offset
            member.offset_data = offset + BLOCK
            self.stop = offset = member.offset_data + _padded(member.size)
            yield member

    def _gap(self, offset: int, skip: int) -> Gap:
        """Find the range that begins where no member could be read, because of damage or the end of a tar."""
        block = self._block(offset)
        if len(block) < BLOCK:
            return Gap(offset, max(offset, self.size), use="incomplete_block")  # the file ends without a mark
        zeros = self._end_of_zeros(offset) if not skip else offset
        if zeros >= self.size:
            self.complete = True
            return Gap(offset, self.size, use="end_of_archive")
        header = self._next_header(zeros + skip)
        # The end of a tar, padded to whole records, and the beginning of another tar. Otherwise the zeros are damage.
        if header == zeros and zeros - offset >= 2 * BLOCK and zeros % tarfile.RECORDSIZE == 0:
            return Gap(offset, header, use="end_of_archive")
        self.complete = self._ends_with_mark()
        stop = self.size if header is None else header
        names, end = self._names(offset, stop)
        rest = (self._data_end() if header is None else header) - end
        shifted = tuple(self._shifted(end, stop)) if rest > 0 else ()
        return Gap(offset, stop, names, max(0, rest), shifted)

    def _shifted(self, offset: int, stop: int) -> Iterator[str]:
        """Yield the names in valid headers anywhere in a range."""
        while offset < stop:
            self.stream.seek(offset)
            chunk = self.stream.read(min(CHUNK, stop - offset))
            match = chunk.find(MAGIC)
            while match >= 0:
                header = self._block(max(0, offset + match - MAGIC_OFFSET))
                if _is_header(header) and header[TYPE_OFFSET : TYPE_OFFSET + 1] not in EXTENDED:
                    yield _name_of(header)
                match = chunk.find(MAGIC, match + 1)
            offset += max(1, len(chunk) - len(MAGIC) + 1)  # the magic may lie across two chunks

    def _names(self, offset: int, stop: int) -> tuple[tuple[str, ...], int]:
        """Read the names in the damaged headers, and find the end of the last member."""
        names: list[str] = []
        while offset < stop:
            header = self._block(offset)
            end = offset + BLOCK + _padded(_size_of(header))
            if end != stop and _is_one_digit_off(header, stop - offset - BLOCK):
                end = stop  # the damage is in the size
            if end > stop:
                break
            if header[TYPE_OFFSET : TYPE_OFFSET + 1] not in EXTENDED:
                names.append(_name_of(header))
            offset = end
            if self._block(offset)[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] != MAGIC:
                break
        return tuple(names), offset

    def _block(self, offset: int) -> bytes:
        self.stream.seek(offset)
        return self.stream.read(BLOCK)

    def _end_of_zeros(self, offset: int) -> int:
        """Find the first block from `offset` on that is not zero, or the end of the file."""
        while offset < self.size:
            self.stream.seek(offset)
            chunk = self.stream.read(CHUNK)
            if not chunk:
                return self.size
            rest = chunk.lstrip(b"\0")
            if rest:
                return offset + (len(chunk) - len(rest)) // BLOCK * BLOCK
            offset += len(chunk)
        return self.size

    def _next_header(self, offset: int, limit: int | None = None) -> int | None:
        """Find the first valid header at or after `offset`, if there is one."""
        stop = self.size if limit is None else min(self.size, limit)
        while offset < stop:
            self.stream.seek(offset)
            chunk = self.stream.read(CHUNK)
            if len(chunk) < BLOCK:
                return None
            match = chunk.find(MAGIC, MAGIC_OFFSET)
            while match >= 0:
                begin = match - MAGIC_OFFSET
                if begin % BLOCK == 0 and _is_header(chunk[begin : begin + BLOCK]):
                    return offset + begin
                match = chunk.find(MAGIC, match + 1)
            offset += len(chunk) // BLOCK * BLOCK
        return None

    def _ends_with_mark(self) -> bool:
        return self.size >= BLOCK and not any(self._block(self.size - BLOCK))

    def _data_end(self) -> int:
        """Find the end of the last block that is not zero."""
        offset = self.size
        while offset >= BLOCK and not any(self._block(offset - BLOCK)):
            offset -= BLOCK
        return offset

    def _check_start(self, offset: int) -> None:
        head = self._block(0)
        if head.startswith(COMPRESSED):
            raise UserError(f"{self.path}: expected an uncompressed .tar; a compressed one has no random access")
        if len(head) < BLOCK or head[MAGIC_OFFSET : MAGIC_OFFSET + 5] == MAGIC or not any(head):
            return
        if self._next_header(offset, LONGEST_PREFIX) is None:
            raise UserError(f"{self.path}: not a tar: it has no valid header")


def plain_member(header: bytes) -> tarfile.TarInfo | None:
    """Parse a valid ustar header of a regular file. Any other header gives None."""
    if len(header) < BLOCK or header[TYPE_OFFSET] not in b"0\0" or not header.startswith(MAGIC, MAGIC_OFFSET):
        return None
    digits = header[SIZE_FIELD]
    checksum = header[CHECKSUM_FIELD]
    name = header[:100].split(b"\0", 1)[0]
    if not digits.isdigit() or not checksum[:6].isdigit() or header[PREFIX_OFFSET] or name.endswith(b"/") or not name:
        return None
    try:
        size = int(digits, 8)
        expected = int(checksum[:6], 8)
    except ValueError:
        return None
    if checksum[6:] != b"\0 " or header[135] not in b"\0 ":
        return None
    if _byte_sum(header[: CHECKSUM_FIELD.start]) + 8 * ord(" ") + _byte_sum(header[CHECKSUM_FIELD.stop :]) != expected:
        return None
    member = tarfile.TarInfo(name.decode("utf-8", "backslashreplace"))
    member.size = size
    return member


def _byte_sum(data: bytes) -> int:
    """Sum at most 512 bytes."""
    # The lower 16 bits of Adler-32 are 1 plus the sum modulo 65521, which 256 bytes cannot reach. Python's `sum` takes
    # ten times as long, a third of a scan.
    return (zlib.adler32(data[:256]) & 0xFFFF) + (zlib.adler32(data[256:]) & 0xFFFF) - 2


def _is_header(block: bytes) -> bool:
    """Check whether the checksum of a header is right."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _name_of(header: bytes) -> str:
    return header[:100].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _size_of(header: bytes) -> int:
    digits = header[SIZE_FIELD].rstrip(b" \0")
    if not digits or digits.strip(b"01234567"):
        return 1 << 62
    return int(digits, 8)


def _is_one_digit_off(header: bytes, space: int) -> bool:
    """Check whether changing one digit of the size makes the header valid, and fills the space to the next header."""
    digits = header[SIZE_FIELD]
    for size in range(max(0, space - BLOCK + 1), space + 1):
        other = b"%011o" % size
        num_different = sum(a != b for a, b in zip(digits, other, strict=False))
        if num_different <= 1 and _is_header(header[: SIZE_FIELD.start] + other + header[SIZE_FIELD.stop :]):
            return True
    return False


def _padded(size: int) -> int:
    return size + -size % BLOCK
