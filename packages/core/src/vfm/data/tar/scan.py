"""Find the offsets of the members of a tar in one pass over its headers. `packed_offsets` stores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from tarfile import TarInfo
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from vfm.base import positions
from vfm.data.ledger.account import Account
from vfm.data.reading.byte_ranges import RangeStream
from vfm.data.samples.sample import Reason
from vfm.data.tar.members import BLOCK, Gap, TarMembers
from vfm.storage import files

# N samples of a tar, S slots (image, txt, json, ...) of a sample

MAX_ROWS = 1 << 31
MISSING, SPARSE, UNKNOWN = -1, -2, -3  # replace an offset
OTHER_IMAGES = ("heic", "heif", "avif", "jxl", "jp2", "jfif", "svg", "tga", "ico", "psd", "exr", "dng")  # not supported
USES = (
    "not_read", "hidden", "no_file", "duplicate_key", "unknown_extension", "damaged_header", "end_of_archive",
    "incomplete_block",
)  # fmt: skip
"""Uses of bytes that are in no row. Where rows are numbered, they have the numbers -1, -2, ..."""
NO_SLOT, HIDDEN, NO_FILE, DUPLICATE = -1, -2, -3, -4
NO_SAMPLES = ("", "md", "rst", "html", "pdf", "yaml", "yml", "py", "sh", "log")  # extensions of a tar's documentation

Lost = tuple[Reason, str]
"""Reason why a sample of a tar is lost, and its address."""


@dataclass(frozen=True)
class TarScan:
    """Content of a tar.

    Attributes:
        keys: Key of each sample.
        places: (offset, size) of each slot. The offset is MISSING without such a member, SPARSE for a sparse member,
            and UNKNOWN if the only image has an extension that is not read.
        complete: False if the tar is truncated.
        damaged: Rows that lost a member to a damaged header.
        lost: Samples that are not rows, because their headers are damaged, their key is repeated, or no member is
            recognised.
        account: The row that each byte belongs to, or why it belongs to none.
    """

    keys: list[str]
    places: NDArray[np.int64]  # (N, S, 2)
    complete: bool
    damaged: tuple[int, ...] = ()
    lost: tuple[Lost, ...] = ()
    account: Account = field(default_factory=lambda: Account("", "bytes"))


def scan_tar(
    path: str,
    slots: Sequence[str],
    image_extensions: Iterable[str],
    limit: int = MAX_ROWS,
    size: int | None = None,
) -> TarScan:
    """Find the members of each sample of a tar.

    The members of a sample need not be adjacent.

    Args:
        path: Path or address of the tar.
        slots: Parts of a sample. The first slot is for images, the other slots are named by their extension.
        image_extensions: Extensions of images.
        limit: The scan ends after that many samples.
        size: Size of a remote tar. If it is known, a request is saved.

    Raises:
        UserError: If the file is not an uncompressed tar.
    """
    content = TarContent(path, slots, set(image_extensions))
    with open_tar(path, size) as stream:
        members = TarMembers(stream, path)
        starts, owners, owner = content.starts, content.owners, None
        start = 0
        for member in members:
            use = content.add_gap(member) if isinstance(member, Gap) else content.add(member)
            if use != owner or use == NO_SLOT:
                starts.append(start)
                owners.append(use)
                owner = use
            start = members.stop
            if len(content.rows) > limit:
                content.rows.popitem()
                break
    content.mark_unknown(content.unknown)
    rows = content.rows
    places = np.array(list(rows.values()), dtype=np.int64).reshape(len(rows), len(slots), 2)
    damaged, lost = content.damage()
    unrecognised = list(content.unrecognised())
    lost += [*content.duplicates(), *unrecognised]
    account = content.account({where for _, where in unrecognised}, start, members.size)
    return TarScan(list(rows), places, members.complete, damaged, tuple(lost), account)


def open_tar(path: str, size: int | None = None) -> IO[bytes]:
    """Open a tar to read its headers. For a remote tar, little more than the headers is read."""
    if not files.is_remote(path):
        return files.open_binary(path)
    if size is None:
        size, _ = files.size_and_time(path)
    return cast("IO[bytes]", RangeStream(path, size))


@dataclass
class TarContent:
    """Content of a tar that has been found so far."""

    path: str
    slots: Sequence[str]
    images: set[str]
    rows: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    image_extension: dict[str, str] = field(default_factory=dict)  # by key
    members: Counter[str] = field(default_factory=Counter)  # number of members by key
    repeated: Counter[tuple[str, str]] = field(default_factory=Counter)  # number of repetitions by key and extension
    unknown: dict[str, list[str]] = field(default_factory=dict)  # names of members without a slot, by key
    gaps: list[tuple[Gap, str]] = field(default_factory=list)  # with the key before each gap
    after: dict[str, str] = field(default_factory=dict)  # key before a gap -> key after it
    last_key: str = ""
    end: int = 0  # end of the last member
    numbers: dict[str, int] = field(default_factory=dict)  # row of each key
    starts: list[int] = field(default_factory=list)  # first byte of each range of members
    owners: list[int] = field(default_factory=list)  # row of each range, or a number of `USES`
    unread: dict[int, str] = field(default_factory=dict)  # range of each member without a slot -> its name

    def __post_init__(self) -> None:
        self.images = {extension.strip().lower() for extension in self.images}
        self.slot_of = {name: index for index, name in enumerate(self.slots) if index}
        self.slot_of |= dict.fromkeys(self.images, 0)

    def account(self, unrecognised: Set[str], end: int, size: int) -> Account:
        """Create the account of the bytes.

        Args:
            unrecognised: Addresses of members without a slot that are lost samples.
            end: Byte after the last range.
            size: Size of the tar. The last member of a truncated tar ends there.
        """
        if unrecognised:
            for index, name in self.unread.items():
                if f"{self.path}:{name}" in unrecognised:
                    self.owners[index] = _number_of("unknown_extension")
        stops = [*self.starts[1:], min(end, size)] if self.starts else []
        return Account(self.path, "bytes", 0, size, self.starts, stops, self.owners, list(USES))

    def add_gap(self, gap: Gap) -> int:
        """Add a gap, and return the number of its use."""
        if gap.use == "damaged_header":
            self.gaps.append((gap, self.last_key))
        return _number_of(gap.use)

    def add(self, member: TarInfo) -> int:
        """Add a member to its sample, and return the row of the sample, or the number of its use."""
        key, extension = split_name(member.name)
        if not (member.isreg() or member.issym() or member.islnk()):
            return NO_FILE
        if not key:
            return HIDDEN
        if self.gaps and self.gaps[-1][1] == self.last_key:  # the first member after a gap
            self.after.setdefault(self.last_key, key)
        self.last_key, self.end = key, member.offset_data + member.size
        self.members[key] += 1
        slot = self.slot_of.get(extension)
        if slot is None:
            self.unknown.setdefault(key, []).append(member.name)
            self.unread[len(self.owners)] = member.name
            return NO_SLOT
        row = self.rows.get(key)
        if row is None:
            self.numbers[key] = len(self.rows)
            row = self.rows[key] = [(MISSING, -1)] * len(self.slots)
        if not member.isreg():  # a link is not followed, so the sample lacks this member
            return self.numbers[key]
        if row[slot][0] == MISSING:
            row[slot] = (SPARSE if member.issparse() else member.offset_data, member.size)
            if slot == 0:
                self.image_extension[key] = extension
        elif slot or self.image_extension[key] == extension:  # the same image in a second format is not another sample
            self.repeated[key, extension] += 1
            return DUPLICATE
        else:
            return NO_SLOT
        return self.numbers[key]

    def mark_unknown(self, keys: Iterable[str]) -> None:
        """Mark the rows of these keys whose only image has an unsupported extension."""
        images = {*self.images, *OTHER_IMAGES}
        for key in keys:
            row, names = self.rows.get(key), self.unknown.get(key, ())
            if row and row[0][0] == MISSING and any(name.rpartition(".")[2].lower() in images for name in names):
                row[0] = (UNKNOWN, -1)

    def duplicates(self) -> Iterator[Lost]:
        """Yield each sample that repeats the key of another sample."""
        most: dict[str, int] = {}
        for (key, _), count in self.repeated.items():
            most[key] = max(count, most.get(key, 0))
        for key, count in most.items():
            for _ in range(count):
                yield "duplicate_key", f"{self.path}:{key}"

    def unrecognised(self) -> Iterator[Lost]:
        """Yield each sample without a member that is read, such as `a.1.png`, with key `a` and extension `1.png`."""
        for key, names in self.unknown.items():
            if key in self.image_extension:
                continue
            dotted = [name for name in names if name.rpartition(".")[2].lower() in self.images]
            if key in self.rows:
                dotted = dotted[1:]  # the first is counted as the row
            elif not dotted:
                dotted = [name for name in names if split_name(name)[1] not in NO_SAMPLES][:1]
            for name in dotted:
                yield "unknown_extension", f"{self.path}:{name}"

    def damage(self) -> tuple[tuple[int, ...], list[Lost]]:
        """Find the rows that lost a member in a gap, and the samples that are lost completely.

        A lost member belongs to the sample that its header names, or else to a neighbour of the gap with fewer members
        than usual, or else to a separate sample. If sizes do not lead from header to header, the number of samples is
        the larger of an estimate by their mean size and a count of the headers.
        """
        if not self.gaps:
            return (), []
        usual = Counter(self.members.values()).most_common(1)[0][0] if self.members else 1
        inside = sum(gap.stop - gap.start for gap, _ in self.gaps if gap.stop <= self.end)
        mean = max(BLOCK, (self.end - inside) / max(1, len(self.members)))
        row_of = positions(self.rows)
        damaged: set[int] = set()
        lost: list[Lost] = []
        for gap, before in self.gaps:
            lacking = Counter[str]()
            for key in (before, self.after.get(before, "")):
                if key in row_of:
                    lacking[key] = usual - self.members[key]
            lacking = +lacking  # keeps positive counts
            names: set[str] = set()
            members = 0
            for name in gap.names:
                key = split_name(name)[0]
                if key in row_of and key not in lacking:
                    damaged.add(row_of[key])
                elif lacking:
                    key = key if key in lacking else next(iter(lacking))
                    damaged.add(row_of[key])
                    lacking[key] -= 1
                    lacking = +lacking
                else:
                    names.add(key)
                    members += 1
            whole = len(names) if usual > 1 else members
            if gap.rest:
                for key in lacking:
                    damaged.add(row_of[key])
                by_size = round(gap.rest / mean - lacking.total() / usual)
                shifted = {split_name(name)[0] for name in gap.shifted} - names - set(row_of)
                at_least = 0 if lacking or gap.names else 1
                whole += max(at_least, by_size, len(shifted))
            lost += [("damaged_header", f"{self.path}: byte {gap.start}")] * whole
        return tuple(sorted(damaged)), lost


def _number_of(use: str) -> int:
    return -1 - USES.index(use)


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and extension, at the first dot of its file name."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    if not stem:
        return "", ""
    key = f"{folder}/{stem}" if folder else stem
    return key.removeprefix("./"), extension.lower()
