"""Count more strings than fit into memory.

A `Counter` that grows too large is written to disk as a file, its rows in buckets by a hash of the string. At the end
each bucket is summed separately. Nothing is pruned, so the counts are exact: the bigrams that a high PMI favours are
the rarest ones, which pruning would lose first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NUM_BUCKETS = 64  # of which one is in memory while counts are summed
MAX_COUNTED = 2_000_000  # distinct strings in memory, some 0.3 GB
SCHEMA = pa.schema([("key", pa.large_string()), ("count", pa.int64())])


class SpillingCounter:
    """Counts strings and returns the counts as tables.

    Args:
        folder: Folder for counts that exceed memory. Without it, all counts stay in memory.
        max_counted: Largest number of distinct strings in memory.
        num_files: Number of an earlier counter's files to keep in the folder. The others are removed.
    """

    def __init__(self, folder: Path | None = None, *, max_counted: int = MAX_COUNTED, num_files: int = 0) -> None:
        self.folder = folder
        self.max_counted = max_counted
        self._counts: Counter[str] = Counter()
        self.files: list[Path] = []
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            left = sorted(folder.iterdir())
            self.files = left[:num_files]
            for file in left[num_files:]:
                file.unlink()

    def add(self, counts: Iterable[str] | Mapping[str, int]) -> None:
        """Count each string once, or add the counts of a mapping."""
        self._counts.update(counts)
        if len(self._counts) > self.max_counted:
            self.spill()

    def tables(self) -> Iterator[pa.Table]:
        """Yield all counts as tables of key and count, one for each bucket. Each key is in a single row of a table."""
        if not self.files:
            yield _table(self._counts.items())
            return
        self.spill()
        for bucket in range(NUM_BUCKETS):
            row_groups = []
            for file in self.files:
                parquet = pq.ParquetFile(file, page_checksum_verification=True)
                row_groups.append(parquet.read_row_group(bucket))
            parts = pa.concat_tables(row_groups)
            summed = parts.group_by("key").aggregate([("count", "sum")])
            yield summed.rename_columns(["key", "count"]).cast(SCHEMA)

    def top(self, min_count: int = 1, *, share: float = 1.0, limit: int | None = None) -> list[str]:
        """Select strings counted at least `min_count` times, most frequent first. Ties are ordered by the string.

        Args:
            min_count: Smallest count of a string.
            share: Largest fraction of all distinct strings.
            limit: Largest number of strings.
        """
        num_distinct = 0
        parts = []
        for table in self.tables():
            num_distinct += len(table)
            parts.append(table.filter(pc.greater_equal(table["count"], min_count)))
        most = math.ceil(share * num_distinct)
        if limit is not None:
            most = min(most, limit)
        return strongest(pa.concat_tables(parts), "count", most)

    def spill(self) -> None:
        """Write the counts in memory to disk, if there is a folder."""
        if not self.folder or not self._counts:
            return
        buckets: list[list[tuple[str, int]]] = [[] for _ in range(NUM_BUCKETS)]
        for item in self._counts.items():
            buckets[crc32(item[0].encode()) % NUM_BUCKETS].append(item)
        # Numbered, so that `num_files` of an interrupted run says which files to keep.
        file = self.folder / f"{len(self.files):06d}.parquet"
        with pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
            for bucket in buckets:  # a row group each, also if empty: `tables` reads bucket i as row group i
                writer.write_table(_table(bucket), row_group_size=max(1, len(bucket)))
        self.files.append(file)
        self._counts.clear()


def strongest(table: pa.Table, column: str, limit: int | None) -> list[str]:
    """Select at most `limit` keys of a table, highest value of a column first. Ties are ordered by the key."""
    strings: list[str] = table["key"].take(by_strength(table, column, limit)).to_pylist()
    return strings


def by_strength(table: pa.Table, column: str, limit: int | None) -> pa.Array:
    """Compute the indices of the rows in the order of `strongest`."""
    return pc.sort_indices(table, [(column, "descending"), ("key", "ascending")])[:limit]


def _table(items: Iterable[tuple[str, int]]) -> pa.Table:
    pairs = list(items)
    counts = np.fromiter((count for _, count in pairs), np.int64, count=len(pairs))
    return pa.table([pa.array([key for key, _ in pairs], pa.large_string()), counts], schema=SCHEMA)
