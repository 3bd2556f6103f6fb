"""Rows parted over files on disk, so that what must be seen together fits into memory together.

The number of buckets sets the memory: it grows with the rows, and a bucket does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ROWS_PER_BUCKET = 1 << 18
BYTES_IN_MEMORY = 1 << 26  # of rows that wait for their bucket's file; a row may hold an embedding


def num_buckets(num_rows: int) -> int:
    """Buckets for so many rows."""
    return max(1, math.ceil(num_rows / ROWS_PER_BUCKET))


class Buckets:
    """Tables of one schema, each row in the bucket of its number."""

    def __init__(self, folder: Path, number: int) -> None:
        """Makes the folder; it holds a file a bucket, each a row of Arrow streams."""
        folder.mkdir(parents=True)
        self.folder, self.number = folder, number
        self._waiting: list[pa.Table] = []
        self._bytes_waiting = 0

    def add(self, table: pa.Table, bucket: NDArray[np.integer]) -> None:
        """Puts each row of a table into its bucket, 0 to number - 1."""
        self._waiting.append(table.append_column("bucket", pa.array(bucket.astype(np.int64))))
        self._bytes_waiting += self._waiting[-1].nbytes
        if self._bytes_waiting > BYTES_IN_MEMORY:
            self._flush()

    def read(self, bucket: int) -> pa.Table | None:
        """The rows of a bucket, in the order in which they came; None where there are none."""
        self._flush()
        file = self.folder / str(bucket)
        if not file.exists():
            return None
        parts = []
        with pa.OSFile(str(file)) as stream:
            while stream.tell() < stream.size():
                parts.append(pa.ipc.open_stream(stream).read_all())
        return pa.concat_tables(parts)

    def __iter__(self) -> Iterator[pa.Table]:
        """The buckets that hold anything."""
        for bucket in range(self.number):
            if (table := self.read(bucket)) is not None:
                yield table

    def _flush(self) -> None:
        if not self._bytes_waiting:
            return
        table = pa.concat_tables(self._waiting).sort_by("bucket")
        buckets, starts = np.unique(table["bucket"].to_numpy(), return_index=True)
        table = table.drop_columns("bucket")
        for bucket, start, end in zip(buckets, starts, [*starts[1:], len(table)], strict=True):
            with open(self.folder / str(bucket), "ab") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table.slice(start, end - start))
        self._waiting, self._bytes_waiting = [], 0


class Fallen:
    """Units that fell, found bucket by bucket and told shard by shard; a unit may be added more than once."""

    def __init__(self, folder: Path, number: int, num_shards: int) -> None:
        self.buckets, self.num_shards = Buckets(folder, min(number, max(1, num_shards))), num_shards

    def add(self, table: pa.Table) -> None:
        """Adds units by their columns `shard` and `unit`."""
        self.buckets.add(table.select(["shard", "unit"]), self._bucket(table["shard"].to_numpy()))

    def passing(self, tables: Iterable[pa.Table]) -> Iterator[NDArray[np.bool_]]:
        """Which units of each shard's table did not fall; the tables come in the order of the shards."""
        group, fallen = -1, None
        for shard, table in enumerate(tables):
            if (wanted := int(self._bucket(np.int64(shard)))) != group:
                group, fallen = wanted, self.buckets.read(wanted)
            if fallen is None:
                yield np.ones(len(table), dtype=np.bool_)
            else:
                here = fallen["unit"].to_numpy()[fallen["shard"].to_numpy() == shard]
                yield ~np.isin(table["unit"].to_numpy(), here)

    def _bucket(self, shard: NDArray[np.integer] | np.int64) -> NDArray[np.int64]:
        return np.asarray(shard, dtype=np.int64) * self.buckets.number // self.num_shards
