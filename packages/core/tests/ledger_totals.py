"""Numbers of units in a ledger, for the tests of `vfm.data`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.compute as pc

from vfm.data.ledger.ledger import LEDGER_FILE, SCHEMA
from vfm.storage.store_files import read_parquet


def read_totals(directory: Path, file: str = LEDGER_FILE) -> dict[str, Counter[str]]:
    """Sum the units of each use in a ledger, by unit.

    A folder without a ledger has no units.
    """
    totals: dict[str, Counter[str]] = {}
    if (directory / file).is_file():
        table = read_parquet(directory / file, SCHEMA.names)
        table = table.append_column("count", pc.subtract(table["stop"], table["start"]))
        for row in table.group_by(["unit", "use"]).aggregate([("count", "sum")]).to_pylist():
            totals.setdefault(row["unit"], Counter())[row["use"]] += row["count_sum"]
    return totals
