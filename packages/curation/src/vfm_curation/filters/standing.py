"""What still stands of a pool: for each text of a shard a code, 0 as long as nothing has dropped it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm_curation.shard_files import whole_file

Codes = NDArray[np.uint8]
VERDICTS_FILE = "verdicts.parquet"  # of a filtering: every text with its reason


def shard_file(folder: Path, shard: int, suffix: str = "parquet") -> Path:
    """Where a shard's file of a kind lies."""
    return folder / f"{shard:08d}.{suffix}"


@dataclass(frozen=True)
class Standing:
    """Small, so that it can be sent to any process: where the measured texts lie, and their codes (None: all 0)."""

    texts: Path
    codes: Path | None = None

    def codes_of(self, shard: int) -> Codes:
        """The code of each text of a shard."""
        if self.codes is None:
            return np.zeros(pq.read_metadata(shard_file(self.texts, shard)).num_rows, dtype=np.uint8)
        codes: Codes = np.load(shard_file(self.codes, shard, "npy"))
        return codes

    def places(self, shard: int) -> NDArray[np.int64]:
        """Which of the shard's texts stand."""
        return np.flatnonzero(self.codes_of(shard) == 0)

    def rows(self, shard: int) -> NDArray[np.int32]:
        """The rows of the samples of which a text stands, ascending."""
        rows = pq.read_table(shard_file(self.texts, shard), columns=["row"])["row"].to_numpy()
        return np.unique(rows[self.places(shard)])


def save_array(file: Path, values: NDArray[np.generic]) -> None:
    """Writes an array, whole or not at all."""
    with whole_file(file) as part, part.open("wb") as stream:
        np.save(stream, values)
