"""Offsets of the members of many tars in one file that all processes map: about 18 bytes per sample of three members.

A segment contains the scan of a tar: each column of numbers as its smallest value and differences of 0, 1, 2, 4 or 8
bytes, and the keys in compressed blocks. Offsets count blocks of 512 bytes, and the offsets of captions and records are
relative to the offset of the image. A segment begins with a checksum, which is compared when the shard is opened. A
damaged segment is ignored, because the tar can be scanned again.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.data.samples.sample import Reason
from vfm.data.tar.members import BLOCK
from vfm.data.tar.scan import TarScan
from vfm.storage.publishing import part_name

# N samples, S slots

PACKED_FILE = "packed.offsets"
KEYS_PER_BLOCK = 128  # looking up a key unpacks one block
_HEAD = struct.Struct("<4sII")  # mark, checksum of the rest, size of the header
_FOOT = struct.Struct("<4sIQQ")  # mark, checksum of the table, number of shards, position of the table
_MARK = b"vfm1"
_WIDTHS = (0, 1, 2, 4, 8)  # bytes of a number, 0 if all are equal


class PackedScan:
    """The scan of a tar, read directly from the bytes of its segment."""

    def __init__(self, data: bytes | memoryview, slots: Sequence[str]) -> None:
        """Open a segment.

        Raises:
            ValueError: If the segment is damaged, or was made for other slots.
        """
        view = memoryview(data)
        if len(view) < _HEAD.size:
            raise ValueError("an empty segment")
        mark, checksum, size = _HEAD.unpack_from(view)
        if mark != _MARK or zlib.crc32(view[_HEAD.size :]) != checksum:
            raise ValueError("a damaged segment")
        header = json.loads(bytes(view[_HEAD.size : _HEAD.size + size]))
        if header["slots"] != list(slots):
            raise ValueError(f"expected the slots {list(slots)}, got {header['slots']}")
        self.complete: bool = header["complete"]
        self.damaged = frozenset[int](header["damaged"])
        self.lost: tuple[tuple[Reason, str], ...] = tuple((reason, where) for reason, where in header["lost"])
        self.num_rows: int = header["samples"]
        self._columns: list[tuple[int, NDArray[Any] | None]] = []
        offset = _HEAD.size + size
        for base, width, count in header["columns"]:
            values = np.frombuffer(view, f"<u{width}", count, offset) if width else None
            self._columns.append((base, values))
            offset += width * count
        self._ends = self._columns.pop()  # ends of the blocks of keys
        self._names = view[offset:]
        self._block: tuple[int, list[str]] = (-1, [])

    def key(self, row: int) -> str:
        """Look up the key of a row."""
        block, index = divmod(row, KEYS_PER_BLOCK)
        cached_block, keys = self._block
        if cached_block != block:
            keys = self._keys_of(block)
            self._block = (block, keys)  # both are replaced at once, because two threads may read
        return keys[index]

    @property
    def keys(self) -> list[str]:
        """All keys."""
        keys: list[str] = []
        for block in range(-(-self.num_rows // KEYS_PER_BLOCK)):
            keys += self._keys_of(block)
        return keys

    def places(self, row: int) -> list[tuple[int, int]]:
        """Look up the (offset, size) of each slot of a row, as in `TarScan.places`."""
        numbers = [base if values is None else base + int(values[row]) for base, values in self._columns]
        places = []
        for slot, (code, size) in enumerate(zip(numbers[::2], numbers[1::2], strict=True)):
            if slot:
                code += numbers[0]
            places.append((code * BLOCK if code >= 0 else code, size))
        return places

    def _keys_of(self, block: int) -> list[str]:
        base, values = self._ends
        start = stop = base
        if values is not None:
            start = base + int(values[block])
            stop = base + int(values[block + 1])
        return zlib.decompress(self._names[start:stop]).decode().split("\0")


def pack(scan: TarScan, slots: Sequence[str]) -> bytes:
    """Pack a scan into a segment."""
    codes = np.where(scan.places[:, :, 0] >= 0, scan.places[:, :, 0] // BLOCK, scan.places[:, :, 0])
    codes[:, 1:] -= codes[:, :1]  # differences are small, so they take fewer bytes
    columns = []
    for slot in range(len(slots)):
        columns += [codes[:, slot], scan.places[:, slot, 1]]
    starts = range(0, len(scan.keys), KEYS_PER_BLOCK)
    names = [zlib.compress("\0".join(scan.keys[start : start + KEYS_PER_BLOCK]).encode()) for start in starts]
    columns.append(np.cumsum([0, *map(len, names)]))
    packed_columns = []
    described = []
    for column in columns:
        base, width, data = _packed(column)
        packed_columns.append(data)
        described.append([base, width, len(column)])
    header = {
        "slots": list(slots),
        "samples": len(scan.keys),
        "complete": scan.complete,
        "damaged": list(scan.damaged),
        "lost": list(scan.lost),
        "columns": described,
    }
    head = json.dumps(header, separators=(",", ":")).encode()
    rest = b"".join([head, *packed_columns, *names])
    return _HEAD.pack(_MARK, zlib.crc32(rest), len(head)) + rest


def _packed(column: NDArray[np.int64]) -> tuple[int, int, bytes]:
    """Compute the smallest value of a column, the width in bytes of the differences to it, and the differences."""
    if not len(column):
        return 0, 0, b""
    base = int(column.min())
    span = int(column.max()) - int(column.min())
    width = next(width for width in _WIDTHS if span < 1 << 8 * width)
    if not width:
        return base, width, b""
    return base, width, (column - base).astype(f"<u{width}").tobytes()


class OffsetsWriter:
    """Writes the segments of many shards to a file. It gets its name if the `with` block succeeds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = part_name(path)
        self._places: list[tuple[int, int]] = []

    def __enter__(self) -> OffsetsWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("xb")
        return self

    def add(self, segment: bytes | None) -> None:
        """Add the segment of the next shard. A shard that was not scanned has none."""
        self._places.append((self._file.tell(), len(segment or b"")))
        self._file.write(segment or b"")

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        """Write the table of places. If no shard was scanned, the file is removed."""
        table = np.array(self._places, dtype="<u8").reshape(-1, 2).tobytes()
        end = self._file.tell()
        with self._file:
            self._file.write(table + _FOOT.pack(_MARK, zlib.crc32(table), len(self._places), end))
        if kind is None and end:
            os.replace(self._part, self.path)
        else:
            self._part.unlink()


class PackedOffsets:
    """The segments in a file from `OffsetsWriter`, mapped, so that all processes share one copy in memory."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            OSError: If there is no such file.
            ValueError: If the file is damaged.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._map) < _FOOT.size:
            raise ValueError("a file without an end")
        mark, checksum, count, offset = _FOOT.unpack_from(self._map, len(self._map) - _FOOT.size)
        if mark != _MARK or offset + 16 * count + _FOOT.size != len(self._map):
            raise ValueError("a damaged end")
        table = memoryview(self._map)[offset : offset + 16 * count]
        if zlib.crc32(table) != checksum:
            raise ValueError("a damaged table")
        self._places = np.frombuffer(table, "<u8").reshape(-1, 2)

    def segment(self, shard: int) -> memoryview | None:
        """Look up the segment of a shard. A shard that was not scanned has none."""
        if shard >= len(self._places):
            return None
        start, size = self._places[shard].tolist()
        return memoryview(self._map)[start : start + size] if size else None
