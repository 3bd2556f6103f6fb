"""The index of a dataset has its shards and the number of samples in each. Images are not copied.

The folder of an `ImageDataset` artifact contains

    shards.parquet      path (absolute, remote, or relative to the folder), format, size in bytes, mtime in ns (for
                        remote files a hash of the ETag), num_samples
    index.json          parts to read of each sample (`DatasetSpec`)
    bad_samples.parquet shard, row, reason and where of the samples that were found to be bad when the shards were read,
                        and are left out. row is -1 for samples that are not rows: lost with a damaged header, with the
                        key of another sample, or lost with the end of a truncated shard (a single entry, since the
                        number is unknown)
    ledger.parquet      where each byte, line or entry of the user's files went (`vfm.data.ledger.ledger`)
    offsets/            member offsets of the tars: one file `packed.offsets` for the tars that were scanned for the
                        index, and a file for each other tar, written when it is first opened
    images-*.parquet    shards of the format `files`: a list of image files with their texts and labels
    copies/*.arrow      with `arrow_copy`, the columns of the samples of each Parquet shard, uncompressed

`row` counts all samples of a shard, including bad ones. Formats: `tar`, `files`, `parquet` (image bytes in a column),
and the formats of plugins (`vfm.data.samples.shards.ShardReader`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.base import UserError, redacted
from vfm.data.reading.byte_ranges import ReadAhead
from vfm.data.reading.recent_groups import RecentGroups
from vfm.data.samples.shards import Opening, Shard, ShardReader, ShardTable, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tar.packed_offsets import PACKED_FILE, PackedOffsets
from vfm.storage import files
from vfm.storage.credentials import check_addresses
from vfm.storage.publishing import write_file
from vfm.storage.remote_spans import RemoteError
from vfm.storage.store_files import read_config, read_parquet, reading

OFFSETS_FOLDER, COPIES_FOLDER = "offsets", "copies"
SHARDS_FILE, SPEC_FILE, BAD_FILE = "shards.parquet", "index.json", "bad_samples.parquet"
SHARDS = pa.schema(
    {
        "path": pa.string(),
        "format": pa.string(),
        "size": pa.int64(),
        "mtime": pa.int64(),
        "num_samples": pa.int64(),
    }
)


@dataclass(frozen=True)
class BadRow:
    """A bad sample that was found when its shard was indexed."""

    shard: int
    row: int
    reason: str
    where: str


@dataclass(frozen=True)
class Index:
    """The content of an index that `write_index` wrote."""

    directory: Path
    shards: ShardTable
    spec: DatasetSpec
    bad_rows: dict[int, NDArray[np.int64]]  # shard -> rows left out

    def open(self, shard: int, ahead: ReadAhead | None = None, groups: RecentGroups | None = None) -> ShardReader:
        """Open a shard.

        Args:
            shard: Number of the shard.
            ahead: Reads the bytes of remote tars.
            groups: Keeps decoded row groups of tables.

        Raises:
            UserError: If a local shard is missing, or its size changed, or a remote one cannot be reached.
        """
        entry, name = self.located(shard)
        path = entry.path
        if not files.is_remote(path):  # remote shards are compared when a run is planned, not in each process
            size, _ = files.size_and_time(path)
            if size != entry.size:
                raise UserError(
                    f"{path}: changed since it was indexed ({entry.size} bytes then, {size} now); run it again"
                )
        save = partial(self.save_offsets, shard)
        copy = str(copy_of(self.directory, shard)) if self.spec.arrow_copy else None
        opening = Opening(name=name, offsets=self._offsets(shard), save=save, ahead=ahead, groups=groups, copy=copy)
        try:
            return shard_format(entry.format).open(entry, self.spec, opening)
        except RemoteError as error:
            raise UserError(str(error)) from None

    def located(self, shard: int) -> tuple[Shard, str]:
        """Look up a shard with its whole path, and its unique name for keys."""
        entry = self.shards[shard]
        return replace(entry, path=self._path(shard)), entry.path.removeprefix(self._folder)

    def save_offsets(self, shard: int, data: bytes) -> None:
        """Store the offsets of a shard, so that it is opened faster next time."""
        with suppress(OSError):  # in a read-only artifact, the shard is scanned again each time
            file = self._offsets_file(shard)
            file.parent.mkdir(exist_ok=True)
            write_file(file, data, durable=False)  # lost offsets only cost another scan

    def _offsets_file(self, shard: int) -> Path:
        return self.directory / OFFSETS_FOLDER / f"{shard:06d}.offsets"

    def _offsets(self, shard: int) -> Iterator[bytes | memoryview]:
        """Yield the offsets of a shard from the index, then the offsets that another process saved."""
        segment = self._packed.segment(shard) if self._packed else None
        if segment is not None:
            yield segment
        with suppress(OSError):
            yield self._offsets_file(shard).read_bytes()

    @cached_property
    def _packed(self) -> PackedOffsets | None:
        with suppress(OSError, ValueError):
            return PackedOffsets(self.directory / OFFSETS_FOLDER / PACKED_FILE)
        return None

    def state(self) -> str:
        """Compute a hash of the sizes and times of shards and listed images. It changes when these files change."""
        digest = hashlib.sha256()
        for shard, entry in enumerate(self.shards):
            path = self._path(shard)
            for file in shard_format(entry.format).files_behind(path):
                try:
                    facts = files.size_and_time(file)
                except UserError:
                    facts = (-1, 0)  # the file is missing
                digest.update(f"{file} {facts}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _path(self, shard: int) -> str:
        path = self.shards[shard].path
        return path if files.is_remote(path) else str(self.directory / path)

    @cached_property
    def _folder(self) -> str:
        """Common folder of all shards. Shards with equal names in different folders differ in their path below it."""
        return os.path.commonprefix(self.shards.first_and_last_path()).rpartition("/")[0] + "/"  # noqa: RUF071

    def rows(self, shard: int) -> NDArray[np.int64]:
        """List the good rows of a shard."""
        rows = np.arange(self.shards[shard].num_samples)
        return np.delete(rows, self.bad_rows[shard]) if shard in self.bad_rows else rows

    def shard_sizes(self) -> NDArray[np.int64]:
        """Count the good samples of each shard."""
        sizes = self.shards.num_samples.copy()
        for shard, rows in self.bad_rows.items():
            sizes[shard] -= len(rows)
        return sizes

    @property
    def num_counted(self) -> int:
        """Number of samples in shards that were not read for the index, because their number was known."""
        total = 0
        for shard, entry in enumerate(self.shards):
            scanned = self._packed is not None and self._packed.segment(shard) is not None
            if not shard_format(entry.format).is_read(scanned=scanned):
                total += entry.num_samples
        return total


def copy_of(directory: Path, shard: int) -> Path:
    """Build the path of the Arrow copy of a table, by its number in the index."""
    return directory / COPIES_FOLDER / f"{shard:06d}.arrow"


def write_index(directory: Path, shards: Sequence[Shard], spec: DatasetSpec, *, bad_rows: Iterable[BadRow] = ()) -> int:
    """Write the index of shards into an artifact's folder.

    Args:
        directory: Folder of the artifact. Shards inside get relative paths.
        shards: The shards.
        spec: Where the parts of a sample are.
        bad_rows: Rows that cannot be used.

    Returns:
        The number of usable samples.

    Raises:
        UserError: If an address has credentials. They would stay in the index.
    """
    check_addresses([*(shard.path for shard in shards), spec.image_root])
    directory.mkdir(parents=True, exist_ok=True)
    num_samples = 0
    records = []
    for shard in shards:
        num_samples += shard.num_samples
        record = vars(shard) | {"path": address_in(shard.path, directory)}
        if not files.is_remote(record["path"]) and not Path(record["path"]).is_absolute():
            record["mtime"] = 0  # inside the artifact, so that the same data give the same bytes at any time
        records.append(record)
    pq.write_table(pa.Table.from_pylist(records, SHARDS), directory / SHARDS_FILE, write_page_checksum=True)
    # These fields came later. Without their defaults, the bytes of an index are the same as before.
    later_fields = ("keys_repeat", "image_root", "captions_optional", "arrow_copy")
    usual = {name for name in later_fields if not getattr(spec, name)}
    (directory / SPEC_FILE).write_text(spec.model_dump_json(indent=1, exclude=usual) + "\n", encoding="utf-8")
    bad_records = []
    for entry in bad_rows:
        num_samples -= entry.row >= 0
        bad_records.append({**vars(entry), "where": redacted(entry.where)})
    if bad_records:
        pq.write_table(pa.Table.from_pylist(bad_records), directory / BAD_FILE, write_page_checksum=True)
    return num_samples


def address_in(path: str, directory: Path) -> str:
    """Convert the path of a shard to the form that an index stores.

    It is relative to the folder of the index, or absolute.
    """
    if files.is_remote(path):
        return path
    absolute, folder = Path(path).resolve(), directory.resolve()
    if absolute.is_relative_to(folder):
        absolute = absolute.relative_to(folder)
    return str(absolute)


def read_index(directory: Path) -> Index:
    """Read the index of an artifact's folder.

    Raises:
        UserError: If there is no index, it is damaged, or it has an unknown shard format.
    """
    if not (directory / SHARDS_FILE).is_file():
        raise UserError(f"{directory}: {SHARDS_FILE} is missing; expected a dataset of images")
    table = read_parquet(directory / SHARDS_FILE, SHARDS.names)
    with reading(directory / SHARDS_FILE, "an index of shards"):
        shards = ShardTable(table)
    for name in shards.formats:
        try:
            shard_format(name)
        except UserError as error:
            raise UserError(f"{directory / SHARDS_FILE}: {error}") from None
    spec = read_config(directory / SPEC_FILE, DatasetSpec)
    bad: dict[int, list[int]] = {}
    if (directory / BAD_FILE).is_file():
        table = read_parquet(directory / BAD_FILE, ["shard", "row"])
        with reading(directory / BAD_FILE, "a list of bad samples"):
            for row in table.to_pylist():
                num_samples = shards[row["shard"]].num_samples
                if row["row"] >= num_samples:
                    raise ValueError(f"row {row['row']} of a shard with {num_samples} samples")
                if row["row"] >= 0:
                    bad.setdefault(row["shard"], []).append(row["row"])
    return Index(directory, shards, spec, {shard: np.array(rows) for shard, rows in bad.items()})
