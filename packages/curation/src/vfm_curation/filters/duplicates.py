"""Filters of duplicates: equal URLs, texts or files, and images with near perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.data import splitmix64
from vfm.plugin import UserError
from vfm_curation.filters.buckets import Buckets, Dropped, num_buckets
from vfm_curation.filters.hashes import block_masks, has_earlier_neighbour
from vfm_curation.filters.run import FilterRun
from vfm_curation.stages import Duplicates, NearDuplicates

Bools = NDArray[np.bool_]
# Orders in which the first of several copies is the one to keep. Texts of one sample keep their own order; shard and
# row decide only if several samples have the same uid.
BY_UID = (("uid", "ascending"), ("shard", "ascending"), ("unit", "ascending"))
LARGEST_FIRST = (("pixels", "descending"), ("num_bytes", "descending"), *BY_UID)
MANY_ROWS = 100  # rows for each image, above which the user is warned of the cost of the distance


def first_copies(config: Duplicates, run: FilterRun) -> Iterator[Bools]:
    """Yield which units have the smallest uid among equal ones.

    Two passes: units into buckets by hash, so that equal ones meet, and the dropped ones back into the order of shards.
    """

    def units() -> Iterator[pa.Table]:
        return run.texts() if config.unit == "text" else run.images()

    number = num_buckets(run.num_units(config.unit))
    buckets = Buckets(run.scratch / "by_hash", number)
    dropped = Dropped(run.scratch / "dropped", number, run.num_shards)
    high, low = f"{config.of}_high", f"{config.of}_low"
    num_hashed = 0
    for table in units():
        known = table.select(["shard", "unit", "uid", high, low]).drop_null()
        buckets.add(known, known[high].to_numpy() % number)
        num_hashed += len(known)
    if config.of == "url" and not num_hashed and run.num_units("image"):
        raise UserError("duplicates of url: no sample has a URL (a field `url` of its json, or a column `url`)")
    for table in buckets:
        dropped.add(first_of_each(table, [high, low])[1])
    yield from dropped.passing(units())


def distinct_images(config: NearDuplicates, run: FilterRun) -> Iterator[Bools]:
    """Yield which images have no near image with more pixels, then with a larger file, then with a smaller uid.

    Of equal hashes the best remains. Those are compared that agree on some choice of their blocks (see `block_masks`).
    """
    num_images = run.num_units("image")
    number, masks = num_buckets(num_images), block_masks(config.max_distance, num_images)
    if len(masks) > MANY_ROWS:
        run.ctx.warn(
            f"near_duplicates: with max_distance {config.max_distance} each of {num_images} images is written and"
            f" sorted {len(masks)} times, with 4 {len(block_masks(4, num_images))} times"
        )
    dropped = Dropped(run.scratch / "dropped", number, run.num_shards)
    equal = Buckets(run.scratch / "equal", number)
    for table in run.images():
        pixels = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
        table = table.select(["shard", "unit", "uid", "phash", "num_bytes"]).append_column("pixels", pa.array(pixels))
        equal.add(table, table["phash"].to_numpy() % number)
    agreeing = Buckets(run.scratch / "agreeing", num_buckets(num_images * len(masks)))
    for table in equal:
        first, later = first_of_each(table, ["phash"], LARGEST_FIRST)
        dropped.add(later)
        for mask in masks if config.max_distance else ():
            blocks = first["phash"].to_numpy() & mask
            # 64 bits that identify the chosen blocks and their content.
            group = splitmix64(blocks ^ splitmix64(mask.reshape(1)))
            agreeing.add(first.append_column("group", pa.array(group)), group % agreeing.number)
    for table in agreeing:
        dropped.add(_near_better(table, config.max_distance))
    yield from dropped.passing(run.identities())


def _near_better(table: pa.Table, max_distance: int) -> pa.Table:
    """Return the rows that are near to a row of their group that is before them in the order `LARGEST_FIRST`."""
    table = table.sort_by([("group", "ascending"), *LARGEST_FIRST])
    near = has_earlier_neighbour(table["group"].to_numpy(), table["phash"].to_numpy(), max_distance)
    return table.filter(pa.array(near))


def first_of_each(
    table: pa.Table, keys: list[str], order: Sequence[tuple[str, str]] = BY_UID
) -> tuple[pa.Table, pa.Table]:
    """Return of the rows with equal keys the first in an order, and the others; both sorted by keys and that order."""
    table = table.sort_by([*((key, "ascending") for key in keys), *order])
    columns = [table[key].to_numpy() for key in keys]
    later = np.zeros(len(table), dtype=np.bool_)
    later[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return table.filter(pa.array(~later)), table.filter(pa.array(later))
