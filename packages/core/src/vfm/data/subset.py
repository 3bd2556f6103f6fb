"""A curated view of a pool: which texts of which samples were kept, as `subset.parquet` in the artifact's folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.config import UserError
from vfm.data.sample import Sample

SUBSET_FILE = "subset.parquet"


def subset_schema() -> Any:
    """Columns of `subset.parquet`, one row for each kept text, sorted by (shard, row, language, text_index).

    shard and row say where the sample lies in the pool's index, uid names it, language and text_index say which of
    its texts, probability is the chance with which it was kept.
    """
    import pyarrow as pa

    return pa.schema(
        {
            "shard": pa.int32(),
            "row": pa.int32(),
            "uid": pa.string(),
            "language": pa.string(),
            "text_index": pa.int32(),
            "probability": pa.float32(),
        }
    )


class SubsetView:
    """Reads `subset.parquet` shard by shard, so that a subset of any size fits into memory."""

    def __init__(self, directory: Path, num_shards: int) -> None:
        """Counts the kept samples of each shard in one streaming pass over two columns.

        Raises:
            UserError: the file is missing, or not sorted by (shard, row).
        """
        self.file = directory / SUBSET_FILE
        if not self.file.is_file():
            raise UserError(f"{directory}: {SUBSET_FILE} is missing; this is no curated subset")
        self.shard_sizes = _samples_by_shard(self.file, num_shards)
        self._shard = lru_cache(64)(self._read_shard)

    def rows(self, shard: int) -> NDArray[np.int64]:
        """Rows of the shard that keep a text, ascending."""
        return np.fromiter(self._shard(shard), dtype=np.int64)

    def texts(self, shard: int, row: int) -> dict[str, list[int]]:
        """Places of a sample's kept texts, by language."""
        return self._shard(shard)[row]

    def narrow(self, sample: Sample, shard: int, row: int) -> dict[str, list[str]]:
        """The kept texts of a sample."""
        return {
            language: [sample.texts[language][place] for place in places]
            for language, places in self.texts(shard, row).items()
        }

    def _read_shard(self, shard: int) -> dict[int, dict[str, list[int]]]:
        import pyarrow.parquet as pq

        table = pq.read_table(self.file, columns=["row", "language", "text_index"], filters=[("shard", "==", shard)])
        kept: dict[int, dict[str, list[int]]] = {}
        for row, language, place in zip(*(column.to_pylist() for column in table.columns), strict=True):
            kept.setdefault(row, {}).setdefault(language, []).append(place)
        return kept


def _samples_by_shard(file: Path, num_shards: int) -> NDArray[np.int64]:
    import pyarrow.parquet as pq

    sizes = np.zeros(num_shards, dtype=np.int64)
    last = np.int64(-1)
    for batch in pq.ParquetFile(file).iter_batches(1 << 20, columns=["shard", "row"]):
        place = batch["shard"].to_numpy().astype(np.int64) << 32 | batch["row"].to_numpy()
        steps = np.diff(place, prepend=last)
        if (steps < 0).any():
            raise UserError(f"{file}: not sorted by shard and row")
        shards, counts = np.unique(place[steps > 0] >> 32, return_counts=True)
        sizes[shards] += counts
        last = place[-1]
    return sizes
