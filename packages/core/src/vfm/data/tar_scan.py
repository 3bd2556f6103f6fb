"""Offsets of the members of a tar: found in one pass over its headers, and saved as a small parquet file."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm import files
from vfm.config import UserError

# N samples of a tar, S slots (image, txt, json, ...) of a sample

BLOCK = 512
MAX_ROWS = 1 << 31


@dataclass(frozen=True)
class TarScan:
    """Content of a tar: keys, (offset, size) of each slot or -1 without such a member, and whether it is complete."""

    keys: list[str]
    places: NDArray[np.int64]  # (N, S, 2)
    complete: bool


def scan_tar(path: str, slots: Sequence[str], image_extensions: Iterable[str], limit: int = MAX_ROWS) -> TarScan:
    """Find the members of the slots: the first slot is for images, the others are named by their extension.

    The members of a sample need not be adjacent. With a `limit`, the scan ends after that many samples.

    Raises:
        UserError: the file is not an uncompressed tar.
    """
    slot_of = {name: index for index, name in enumerate(slots) if index}
    slot_of |= {extension.strip().lower(): 0 for extension in image_extensions}
    rows: dict[str, list[tuple[int, int]]] = {}
    with files.open_binary(path) as stream:
        members = _Members(stream, path)
        for member in members:
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            slot = slot_of.get(extension.lower())
            if slot is None or not stem or not member.isreg():
                continue
            key = f"{folder}/{stem}" if folder else stem
            row = rows.setdefault(key.removeprefix("./"), [(-1, -1)] * len(slots))
            if row[slot][0] < 0:
                row[slot] = (member.offset_data, member.size)
            if len(rows) > limit:
                rows.popitem()
                break
    places = np.array(list(rows.values()), dtype=np.int64).reshape(len(rows), len(slots), 2)
    return TarScan(list(rows), places, members.complete)


class _Members:
    """Iterates over a tar's members; afterwards `complete` is False if the tar is truncated."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self.stream, self.path = stream, path
        self.complete = False

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            with tarfile.open(fileobj=self.stream, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
                    yield member
                # tarfile treats a broken header as the end, so the end mark is checked: a block of zeros.
                self.stream.seek(tar.offset)
                self.complete = self.stream.read(BLOCK) == bytes(BLOCK)
        except tarfile.ReadError as error:
            self._explain(error)

    def _explain(self, error: tarfile.ReadError) -> None:
        self.stream.seek(0)
        head = self.stream.read(BLOCK)
        if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            raise UserError(f"{self.path}: expected an uncompressed .tar; a compressed one has no random access")
        if len(head) == BLOCK and head[257:262] != b"ustar":
            raise UserError(f"{self.path}: not a tar: {error}")


def load_scan(cache: Path, slots: Sequence[str]) -> TarScan:
    """Load a saved scan."""
    table = pq.read_table(cache)
    columns = [[table[f"{slot}.{part}"].to_numpy() for part in ("offset", "size")] for slot in slots]
    places = np.array(columns, dtype=np.int64).transpose(2, 0, 1)
    return TarScan(table["key"].to_pylist(), places, table.schema.metadata[b"complete"] == b"true")


def save_scan(cache: Path, scan: TarScan, slots: Sequence[str]) -> None:
    """Save a scan, if possible: with a read-only artifact the tar is scanned again each time."""
    columns: dict[str, Any] = {"key": pa.array(scan.keys, pa.string())}
    for index, slot in enumerate(slots):
        columns |= {f"{slot}.offset": scan.places[:, index, 0], f"{slot}.size": scan.places[:, index, 1]}
    table = pa.table(columns, metadata={"complete": str(scan.complete).lower()})
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    try:
        cache.parent.mkdir(exist_ok=True)
        pq.write_table(table, part)
        os.replace(part, cache)
    except OSError:
        part.unlink(missing_ok=True)
