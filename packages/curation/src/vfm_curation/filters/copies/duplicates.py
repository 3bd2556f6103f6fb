"""Drop equal URLs, texts or image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm_curation.filters.copies.buckets import Buckets, Dropped, num_buckets
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.stages import Duplicates

Bools = NDArray[np.bool_]
# Orders in which the first of several copies is the one to keep. Texts of a sample keep their own order. Shard and row
# decide only if several samples have the same uid.
BY_UID = (("uid", "ascending"), ("shard", "ascending"), ("unit", "ascending"))
LARGEST_FIRST = (("pixels", "descending"), ("num_bytes", "descending"), *BY_UID)


def first_copies(config: Duplicates, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask for each shard: the units with the smallest uid among equal ones.

    There are two passes: units go into buckets by hash, so that equal ones meet, and the dropped ones go back into the
    order of shards.
    """

    def units() -> Iterator[pa.Table]:
        if config.unit == "text":
            return run.texts()
        return run.images()

    number = num_buckets(run.num_units(config.unit))
    buckets = Buckets(run.scratch / "by_hash", number)
    dropped = Dropped(run.scratch / "dropped", number, run.num_shards)
    high, low = f"{config.of}_high", f"{config.of}_low"
    num_hashed = 0
    for table in units():
        # Units without the value, such as images without a URL, are not copies of each other.
        known = table.select(["shard", "unit", "uid", high, low]).drop_null()
        # Equal hashes fall into one bucket, so buckets can be searched one at a time.
        buckets.add(known, known[high].to_numpy() % number)
        num_hashed += len(known)
    if config.of == "url" and not num_hashed and run.num_units("image"):
        run.warn_of_no_urls([config.reason])
    for table in buckets:
        dropped.add(first_of_each(table, [high, low])[1])
    yield from dropped.passing(units())


def first_of_each(
    table: pa.Table, keys: list[str], order: Sequence[tuple[str, str]] = BY_UID
) -> tuple[pa.Table, pa.Table]:
    """Split rows into the first of each group with equal keys, and the others.

    Args:
        table: The rows.
        keys: Columns of the keys.
        order: Columns that decide which row is the first.

    Returns:
        The first rows and the others, both sorted by keys and order.
    """
    table = table.sort_by([*((key, "ascending") for key in keys), *order])
    later = np.ones(len(table), dtype=np.bool_)
    later[:1] = False
    for key in keys:
        column = table[key].to_numpy()
        later[1:] &= column[1:] == column[:-1]
    return table.filter(pa.array(~later)), table.filter(pa.array(later))
