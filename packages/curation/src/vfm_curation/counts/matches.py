"""Read the files of a `Matches` artifact, one for each shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.plugin import UserError
from vfm_curation.shard_files import ARROW, finished_summary, read_arrow_file

FOLDER = "shards"
COUNTS_FILE = "counts.npy"  # texts of each entry


@dataclass(frozen=True)
class ShardMatches:
    """The matched texts of a shard, with the columns of its file and all entry ids with an offset for each text."""

    table: pa.Table  # shard, row, uid (perhaps as 16 bytes), language, text_index, perhaps detected, key
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]  # text i has ids[offsets[i]:offsets[i + 1]]

    def ids_of(self, text: int) -> list[int]:
        """List the entries in one text."""
        ids: list[int] = self.ids[self.offsets[text] : self.offsets[text + 1]].tolist()
        return ids

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The key of each text."""
        keys: NDArray[np.uint64] = self.table["key"].to_numpy()
        return keys

    @property
    def languages(self) -> pa.ChunkedArray:
        """The language of each text: the detected one if languages were detected."""
        return self.table["detected" if "detected" in self.table.column_names else "language"]


def matches_file(directory: Path, shard: int) -> Path:
    """Build the path of the matches of a shard."""
    return directory / FOLDER / f"{shard:08d}{ARROW}"


def num_shards(directory: Path) -> int:
    """Count the shards of a `Matches` artifact."""
    return len(_files(directory))


def _files(directory: Path) -> list[Path]:
    """List the files of the shards in their order."""
    check_files(directory)
    return sorted((directory / FOLDER).glob(f"*{ARROW}"))


def check_files(directory: Path) -> None:
    """Check that the files of a `Matches` artifact have this version's format.

    Raises:
        UserError: If an earlier version wrote them, or there are none.
    """
    folder = directory / FOLDER
    if any(folder.glob(f"*{ARROW}")):
        return
    found = "Parquet files of an earlier version" if any(folder.glob("*.parquet")) else "none"
    raise UserError(f"{folder}: expected Arrow files of matches, got {found}; run curation.match again")


def texts_by_language(directory: Path) -> Counter[str]:
    """Count the texts of each language in a `Matches` artifact, whether they contain an entry or not."""
    counts = Counter[str]()
    for file in _files(directory):
        summary = finished_summary(file) or {}
        counts.update(summary.get("texts_of", {}))
    return counts


def read_shards(directory: Path, *, only_ids: bool = False) -> Iterator[ShardMatches]:
    """Yield the files of a `Matches` artifact, in the order of the shards."""
    for file in _files(directory):
        yield read_matches(file, only_ids=only_ids)


def read_matches(file: Path, *, only_ids: bool = False) -> ShardMatches:
    """Read the matches of a shard."""
    return of_table(read_arrow_file(file, ["ids"] if only_ids else None))


def of_table(table: pa.Table) -> ShardMatches:
    """Extract the matches from a table with the column `ids`."""
    lists = table["ids"].combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return ShardMatches(table.drop_columns("ids"), lists.values.to_numpy(), offsets)


def count_of_each(languages: pa.ChunkedArray) -> dict[str, int]:
    """Count the occurrences of each value in a column."""
    return {item["values"]: item["counts"] for item in languages.value_counts().to_pylist()}
