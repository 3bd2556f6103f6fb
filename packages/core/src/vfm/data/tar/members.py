"""Headers of a tar one after another, also behind damaged ones: reading resumes at the next valid header."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from vfm.base import UserError

BLOCK = 512  # bytes; headers and data begin at multiples of it
MAGIC, MAGIC_PLACE = b"ustar", 257
SIZE_FIELD = slice(124, 135)  # octal digits
CHECKSUM_FIELD = slice(148, 156)
PREFIX_PLACE = 345  # of a long name
TYPE_PLACE, EXTENDED = 156, (b"x", b"g", b"L", b"K")  # types of headers that belong to the next header
CHUNK = 1 << 20
LONGEST_PREFIX = 256 << 20  # bytes in which the first valid header must be, else the file is not a tar
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class Gap:
    """A range of bytes with at least one damaged header.

    Attributes:
        start: first byte, the damaged header.
        stop: next valid header, or the end of the file.
        names: names in the damaged headers whose sizes lead from one to the next; one of them may be wrong.
        rest: bytes behind those headers' members, where sizes lead nowhere.
        shifted: names in valid headers within the rest, which lost or inserted bytes have moved off their blocks.
    """

    start: int
    stop: int
    names: tuple[str, ...]
    rest: int
    shifted: tuple[str, ...] = ()


class TarMembers:
    """Iterates over a tar's members and its gaps.

    Afterwards `complete` is False if the file ends without the mark that ends a tar: a block of zeros.
    """

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self.stream, self.path = stream, path
        self.complete = False
        self._size = stream.seek(0, 2)

    def __iter__(self) -> Iterator[tarfile.TarInfo | Gap]:
        """Yield members and gaps in the order of the file.

        Raises:
            UserError: the file is not an uncompressed tar.
        """
        start, any_member = 0, False
        while True:
            for plain in self._plain(start):
                any_member = True
                yield plain
                start = plain.offset_data + _padded(plain.size)
            place = start
            tar: tarfile.TarFile | None = None
            skip = 0
            self.stream.seek(start)
            try:
                # Not closed: it holds nothing but the stream.
                tar = tarfile.open(fileobj=self.stream, mode="r:", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
                    any_member = True
                    yield member
                place = tar.offset
            except (tarfile.TarError, ValueError, IndexError, OverflowError):
                # A header that is valid but belongs to another one, which is damaged, must not be tried again.
                place = tar.offset if tar else start
                skip = BLOCK if _is_header(self._block(place)) else 0
            if not any_member:
                self._check_start(place + skip)
            gap = self._gap(place, skip)
            if gap is None:
                return
            if gap.start < gap.stop:
                yield gap
            if gap.stop >= self._size:
                return
            start = gap.stop

    def _plain(self, place: int) -> Iterator[tarfile.TarInfo]:
        """Yield members as long as their headers are plain ones: tarfile reads every header, in five times the time."""
        while (member := plain_member(self._block(place))) is not None:
            member.offset, member.offset_data = place, place + BLOCK
            place = member.offset_data + _padded(member.size)
            yield member

    def _gap(self, place: int, skip: int) -> Gap | None:
        """Return the damaged range that begins where no member could be read, None at the end of the tar.

        An empty gap leads to the tar that was appended to this one.
        """
        block = self._block(place)
        if len(block) < BLOCK:
            return None  # the file ends without a mark
        zeros = self._end_of_zeros(place) if not skip else place
        if zeros >= self._size:
            self.complete = True
            return None
        found = self._next_header(zeros + skip)
        # The end of a tar, padded to whole records, and the beginning of another one; else the zeros are damage.
        if found == zeros and zeros - place >= 2 * BLOCK and zeros % tarfile.RECORDSIZE == 0:
            return Gap(found, found, (), 0)
        self.complete = self._ends_with_mark()
        names, end = self._names(place, self._size if found is None else found)
        rest = (self._data_end() if found is None else found) - end
        stop = self._size if found is None else found
        return Gap(place, stop, names, max(0, rest), tuple(self._shifted(end, stop)) if rest > 0 else ())

    def _shifted(self, place: int, stop: int) -> Iterator[str]:
        """Yield the names in valid headers anywhere in a range."""
        while place < stop:
            self.stream.seek(place)
            chunk = self.stream.read(min(CHUNK, stop - place))
            found = chunk.find(MAGIC)
            while found >= 0:
                header = self._block(max(0, place + found - MAGIC_PLACE))
                if _is_header(header) and header[TYPE_PLACE : TYPE_PLACE + 1] not in EXTENDED:
                    yield _name_of(header)
                found = chunk.find(MAGIC, found + 1)
            place += max(1, len(chunk) - len(MAGIC) + 1)  # the text may lie across two chunks

    def _names(self, place: int, stop: int) -> tuple[tuple[str, ...], int]:
        """Return the names in the damaged headers, and the end of the last one's member."""
        names: list[str] = []
        while place < stop:
            header = self._block(place)
            end = place + BLOCK + _padded(_size_of(header))
            if end != stop and _is_one_digit_off(header, stop - place - BLOCK):
                end = stop  # the damage is in the size
            if end > stop:
                break
            if header[TYPE_PLACE : TYPE_PLACE + 1] not in EXTENDED:
                names.append(_name_of(header))
            place = end
            if self._block(place)[MAGIC_PLACE : MAGIC_PLACE + len(MAGIC)] != MAGIC:
                break
        return tuple(names), place

    def _block(self, place: int) -> bytes:
        self.stream.seek(place)
        return self.stream.read(BLOCK)

    def _end_of_zeros(self, place: int) -> int:
        """Return the first block from `place` that is not zero, or the size of the file."""
        while place < self._size:
            self.stream.seek(place)
            chunk = self.stream.read(CHUNK)
            if not chunk:
                return self._size
            rest = chunk.lstrip(b"\0")
            if rest:
                return place + (len(chunk) - len(rest)) // BLOCK * BLOCK
            place += len(chunk)
        return self._size

    def _next_header(self, place: int, limit: int | None = None) -> int | None:
        """Return the place of the first valid header at or behind `place`, None if there is none."""
        stop = self._size if limit is None else min(self._size, limit)
        while place < stop:
            self.stream.seek(place)
            chunk = self.stream.read(CHUNK)
            if len(chunk) < BLOCK:
                return None
            found = chunk.find(MAGIC, MAGIC_PLACE)
            while found >= 0:
                begin = found - MAGIC_PLACE
                if begin % BLOCK == 0 and _is_header(chunk[begin : begin + BLOCK]):
                    return place + begin
                found = chunk.find(MAGIC, found + 1)
            place += len(chunk) // BLOCK * BLOCK
        return None

    def _ends_with_mark(self) -> bool:
        return self._size >= BLOCK and not any(self._block(self._size - BLOCK))

    def _data_end(self) -> int:
        """Return the end of the last block that is not zero."""
        place = self._size
        while place >= BLOCK and not any(self._block(place - BLOCK)):
            place -= BLOCK
        return place

    def _check_start(self, place: int) -> None:
        head = self._block(0)
        if head.startswith(COMPRESSED):
            raise UserError(f"{self.path}: expected an uncompressed .tar; a compressed one has no random access")
        if len(head) < BLOCK or head[MAGIC_PLACE : MAGIC_PLACE + 5] == MAGIC or not any(head):
            return
        if self._next_header(place, LONGEST_PREFIX) is None:
            raise UserError(f"{self.path}: not a tar: it has no valid header")


def plain_member(header: bytes) -> tarfile.TarInfo | None:
    """Return the regular file of a valid ustar header, None for a header with anything else in it."""
    if len(header) < BLOCK or header[TYPE_PLACE] not in b"0\0" or not header.startswith(MAGIC, MAGIC_PLACE):
        return None
    digits, checksum = header[SIZE_FIELD], header[CHECKSUM_FIELD]
    name = header[:100].split(b"\0", 1)[0]
    if not digits.isdigit() or not checksum[:6].isdigit() or header[PREFIX_PLACE] or name.endswith(b"/") or not name:
        return None
    try:
        size, expected = int(digits, 8), int(checksum[:6], 8)
    except ValueError:
        return None
    if sum(header) - sum(checksum) + 8 * ord(" ") != expected or checksum[6:] != b"\0 " or header[135] not in b"\0 ":
        return None
    member = tarfile.TarInfo(name.decode("utf-8", "backslashreplace"))
    member.size = size
    return member


def _is_header(block: bytes) -> bool:
    """Return whether the checksum of a header is right."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _name_of(header: bytes) -> str:
    return header[:100].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _size_of(header: bytes) -> int:
    digits = header[SIZE_FIELD].rstrip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else 1 << 62


def _is_one_digit_off(header: bytes, space: int) -> bool:
    """Return whether another digit of the size makes the header valid and fills the space up to the next header."""
    digits = header[SIZE_FIELD]
    for size in range(max(0, space - BLOCK + 1), space + 1):
        other = b"%011o" % size
        if sum(a != b for a, b in zip(digits, other, strict=False)) <= 1 and _is_header(
            header[: SIZE_FIELD.start] + other + header[SIZE_FIELD.stop :]
        ):
            return True
    return False


def _padded(size: int) -> int:
    return size + -size % BLOCK
