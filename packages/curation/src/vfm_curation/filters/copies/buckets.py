"""Distribute rows over files on disk, so that rows that must be compared fit into memory together.

The number of buckets grows with the rows, so the size of a bucket, and with it the memory, does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ROWS_PER_BUCKET = 1 << 18  # some hundred MB in memory at most
BYTES_IN_MEMORY = 1 << 26  # of rows to be written, in bytes since a row may hold an embedding


def num_buckets(num_rows: int) -> int:
    """Choose the number of buckets for a number of rows."""
    return max(1, math.ceil(num_rows / ROWS_PER_BUCKET))


class Buckets:
    """Tables of a schema, each row in the bucket of its number."""

    def __init__(self, folder: Path, number: int) -> None:
        """Create the folder of the buckets. The file of a bucket is a sequence of Arrow streams."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.number = number
        self._waiting: list[pa.Table] = []
        self._bytes_waiting = 0

    def add(self, table: pa.Table, bucket: NDArray[np.integer]) -> None:
        """Put each row of a table into its bucket, 0 to number - 1."""
        # Rows wait in memory, since a write to each bucket for each table would be many small ones.
        self._waiting.append(table.append_column("bucket", pa.array(bucket.astype(np.int64))))
        self._bytes_waiting += self._waiting[-1].nbytes
        if self._bytes_waiting > BYTES_IN_MEMORY:
            self._flush()

    def read(self, bucket: int) -> pa.Table | None:
        """Read the rows of a bucket in the order they were added, if there are any."""
        self._flush()
        file = self.folder / str(bucket)
        if not file.exists():
            return None
        parts = []
        with pa.OSFile(str(file)) as stream:
            # Each flush appended a stream.
            while stream.tell() < stream.size():
                parts.append(pa.ipc.open_stream(stream).read_all())
        return pa.concat_tables(parts)

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the buckets that are not empty."""
        for bucket in range(self.number):
            table = self.read(bucket)
            if table is not None:
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
        self._waiting = []
        self._bytes_waiting = 0


class Dropped:
    """Dropped units, added bucket by bucket and read shard by shard. A unit may be added more than once."""

    def __init__(self, folder: Path, number: int, num_shards: int) -> None:
        self.buckets = Buckets(folder, min(number, max(1, num_shards)))
        self.num_shards = num_shards

    def add(self, table: pa.Table) -> None:
        """Add units by their columns `shard` and `unit`."""
        self.buckets.add(table.select(["shard", "unit"]), self._bucket(table["shard"].to_numpy()))

    def passing(self, tables: Iterable[pa.Table]) -> Iterator[NDArray[np.bool_]]:
        """Yield a mask for each shard's table: the units that were not dropped. Tables are in the order of shards."""
        group, dropped = -1, None
        for shard, table in enumerate(tables):
            bucket = int(self._bucket(np.int64(shard)))
            if bucket != group:
                group = bucket
                dropped = self.buckets.read(bucket)
            if dropped is None:
                yield np.ones(len(table), dtype=np.bool_)
            else:
                here = dropped["unit"].to_numpy()[dropped["shard"].to_numpy() == shard]
                yield ~np.isin(table["unit"].to_numpy(), here)

    def _bucket(self, shard: NDArray[np.integer] | np.int64) -> NDArray[np.int64]:
        return np.asarray(shard, dtype=np.int64) * self.buckets.number // self.num_shards
