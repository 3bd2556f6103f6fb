"""The ledger in an artifact's folder: `ledger.parquet` has a row for each run of units with the same use.

Columns: source (path), unit (bytes, entries, lines, ...), start, stop, and use: `used`, the reason of a bad sample, or
why the units are in no sample. The runs of a source are all of its units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vfm.base import UserError, redacted
from vfm.data.ledger.account import Account

LEDGER_FILE = "ledger.parquet"
ANNOTATED_LEDGER = "annotated_ledger.parquet"  # of the images and annotations that a reader of annotations lists
ROWS_AT_A_TIME = 1 << 17
REPEATED = ["source", "unit", "use"]  # columns of few values
SCHEMA = pa.schema(
    {"source": pa.string(), "unit": pa.string(), "start": pa.int64(), "stop": pa.int64(), "use": pa.string()}
)


class LedgerWriter:
    """Writes the runs of sources, each of which must be whole."""

    def __init__(self, path: Path, address: Callable[[str], str] = str) -> None:
        """Write to a path.

        Args:
            path: The file.
            address: Converts the path of a source to the one that is stored.
        """
        self._path, self._address = path, address
        self.totals: dict[str, Counter[str]] = {}  # number of units of each use, by unit
        self._parts: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, account: Account, problems: Mapping[int, str], num_samples: int | None = None) -> None:
        """Add a source to the ledger.

        Args:
            account: Use of each unit of the source.
            problems: Reason of each of its bad samples.
            num_samples: Number of its samples.

        Raises:
            UserError: If a unit of the source was lost or counted twice.
        """
        try:
            runs = account.runs(problems, num_samples)
        except ValueError as error:
            raise UserError(f"{account.source}: {account.unit} {error}; please report this") from None
        numbers = np.bincount(runs.codes, runs.stops - runs.starts, minlength=len(runs.uses)).astype(int).tolist()
        totals = self.totals.setdefault(account.unit, Counter())
        totals += Counter(dict(zip(runs.uses, numbers, strict=True)))  # unlike `update`, without uses of no unit
        count = len(runs.starts)
        columns = [
            _repeated(redacted(self._address(account.source)), count),
            _repeated(account.unit, count),
            pa.array(runs.starts),
            pa.array(runs.stops),
            pa.array(runs.uses, pa.string()).take(pa.array(runs.codes)),
        ]
        self._parts.append(pa.Table.from_arrays(columns, schema=SCHEMA))
        if sum(map(len, self._parts)) >= ROWS_AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        if not self._writer:
            self._writer = pq.ParquetWriter(
                self._path, SCHEMA, compression="zstd", use_dictionary=REPEATED, write_page_checksum=True
            )
        self._writer.write_table(pa.concat_tables(self._parts).combine_chunks())
        self._parts.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the rest. Without sources, there is no file."""
        if kind is None and self._parts:
            self._flush()
        if self._writer:
            self._writer.close()


def _repeated(value: str, count: int) -> Any:
    return pa.array([value], pa.string()).take(pa.array(np.zeros(count, dtype=np.int64)))
