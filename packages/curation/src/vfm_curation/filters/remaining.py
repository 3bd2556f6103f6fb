"""State of a pool between two filters, shard by shard, and the codes that a filter gives to it.

It has only paths, so it can be sent to any process: a `RowFilter` runs as one task for each shard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.data import num_distinct, unpacked_uids
from vfm.plugin import store_files
from vfm_curation.filters.stages import RowFilter, Unit
from vfm_curation.filters.survivors import Codes, Survivors, save_array, shard_file
from vfm_curation.shard_files import whole_file
from vfm_curation.summaries import TaskSummary


@dataclass(frozen=True)
class Remaining:
    """The remaining texts, and the remaining images with their measurements."""

    survivors: Survivors
    measured: Path  # the folder of the images' measurements

    def texts(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the remaining texts with their measurements, or some. `unit` is a text's index in its shard."""
        table = self.survivors.remaining(shard, columns)
        for number, name in enumerate(table.column_names):
            if name == "uid":
                table = table.set_column(number, name, unpacked_uids(table[name]))
            elif name == "language":
                table = table.set_column(number, name, table[name].cast(pa.string()))
        return table

    def identities(self, shard: int) -> pa.Table:
        """Read the remaining images of a shard.

        The columns are shard, unit, uid, and the user's own columns that filters read.
        """
        table = self.texts(shard)
        rows, first = np.unique(table["row"].to_numpy(), return_index=True)
        stored = [name for name in table.column_names if name.startswith("stored.")]
        return table.select(["shard", "uid", *stored]).take(first).append_column("unit", pa.array(rows, pa.int32()))

    def images(self, shard: int) -> pa.Table:
        """Read the remaining images with their measurements. `unit` is the image's row."""
        table = self.identities(shard)
        measured = pq.read_table(shard_file(self.measured, shard), page_checksum_verification=True)
        chosen = measured.take(np.searchsorted(measured["row"].to_numpy(), table["unit"].to_numpy()))
        return pa.table({**_columns(table), **_columns(chosen.drop_columns(["row", "bad"]))})


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names}


@dataclass(frozen=True)
class Pass:
    """Counts after a filter, or after unreadable images were dropped, and the seconds since the last pass.

    `details` is a panel of the filter's own as JSON, if it has one, and `lost` the hash of the shards that could not be
    read (`Lost.hash`).
    """

    name: str
    num_texts: int
    num_images: int
    seconds: float
    details: dict[str, Any] | None = None
    lost: str = ""

    @classmethod
    def read(cls, file: Path) -> Pass | None:
        """Read the record of a pass that is whole on disk, else return None."""
        if not file.exists():
            return None
        with store_files.reading(file, "the record of a pass"):
            return cls(**store_files.read_record(file))

    def write(self, file: Path) -> None:
        """Write the record, which marks the pass as whole."""
        with whole_file(file) as part:
            part.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class RowJob:
    """Settings that the tasks of a filter over rows share. `code` is given to the units that it drops."""

    config: RowFilter
    remaining: Remaining
    folder: Path
    code: int


@dataclass
class CodesSummary(TaskSummary):
    """Counts of the texts and images that remain in a shard."""

    num_images: int = 0


def filter_rows(job: RowJob, shard: int) -> CodesSummary:
    """Write the codes of a shard after a filter over rows."""
    remaining = job.remaining
    unit = job.config.unit
    table = remaining.texts(shard) if unit == "text" else remaining.images(shard)
    # A plugin may return its mask as a list.
    passes = np.asarray(job.config.build(table), dtype=np.bool_)
    return write_codes(remaining.survivors, job.folder, shard, unit, ~passes * np.uint8(job.code))


def write_codes(survivors: Survivors, folder: Path, shard: int, unit: Unit, codes_of_units: Codes) -> CodesSummary:
    """Give each remaining unit of a shard its code, and write the codes of all texts of the shard.

    Args:
        survivors: Texts that remain so far.
        folder: Folder for the file.
        shard: Number of the shard.
        unit: Texts, or images with their texts.
        codes_of_units: Code of each remaining unit.
    """
    codes = survivors.codes_of(shard)
    remain = codes == 0
    rows: NDArray[np.int32] = survivors.measured(shard, ["row"])["row"].to_numpy()
    if unit == "image":  # each text gets the code of its row's image
        codes_of_units = codes_of_units[np.unique(rows[remain], return_inverse=True)[1]]
    codes[remain] = codes_of_units
    save_array(shard_file(folder, shard, "npy"), codes)
    left = rows[codes == 0]
    return CodesSummary(num_texts=len(left), num_images=num_distinct(left))
