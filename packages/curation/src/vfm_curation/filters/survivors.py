"""Texts of a pool that have passed all filters so far. A text has the code 0 until a filter drops it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.plugin import store_files
from vfm_curation.shard_files import read_arrow_file, whole_file

Codes = NDArray[np.uint8]
VERDICTS_FOLDER = "verdicts"  # in the artifact of a filter: every text with its reason


def shard_file(folder: Path, shard: int, suffix: str = "parquet") -> Path:
    """Build the path of a shard's file in a folder."""
    return folder / f"{shard:08d}.{suffix}"


@dataclass(frozen=True)
class Survivors:
    """Paths of the measured texts and of their codes (None: all 0).

    It is small, so any process can receive it.
    """

    texts: Path
    codes: Path | None = None

    def codes_of(self, shard: int) -> Codes:
        """Read the code of each text of a shard."""
        if self.codes is None:
            return np.zeros(len(self.measured(shard, ["row"])), dtype=np.uint8)
        codes: Codes = store_files.read_npy(shard_file(self.codes, shard, "npy"))
        return codes

    def places(self, shard: int) -> NDArray[np.int64]:
        """Find the indices of the shard's remaining texts."""
        return np.flatnonzero(self.codes_of(shard) == 0)

    def rows(self, shard: int) -> NDArray[np.int32]:
        """Find the rows of the samples with a remaining text, ascending."""
        rows: NDArray[np.int32] = self.measured(shard, ["row"])["row"].to_numpy()
        return np.unique(rows[self.places(shard)])

    def file(self, shard: int) -> Path:
        """Build the path of a shard's measured texts."""
        return shard_file(self.texts, shard, "arrow")

    def measured(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Map the measurements of all texts of a shard, or some columns.

        Uids may be 16 bytes, and languages are a dictionary.
        """
        return read_arrow_file(self.file(shard), columns)

    def remaining(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the remaining texts as `measured` has them, and `unit`, a text's index in its shard."""
        places = self.places(shard)
        table = self.measured(shard, columns)
        if len(places) < len(table):
            table = table.take(places)
        return table.append_column("unit", pa.array(places, pa.int32()))


def save_array(file: Path, values: NDArray[np.generic]) -> None:
    """Write an array, whole or not at all."""
    with whole_file(file) as part, part.open("wb") as stream:
        np.save(stream, values)
