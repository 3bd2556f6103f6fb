"""Filter of placeholders: equal image files under many different captions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.plugin import TablePanel
from vfm_curation.filters.copies.buckets import Buckets, Dropped, num_buckets
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.stages import Placeholders

Bools = NDArray[np.bool_]
FILE = ["image_high", "image_low"]
NUM_SHOWN = 20  # images of the table


def few_captions(config: Placeholders, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask for each shard: the images whose file has at most `max_captions` different captions.

    Captions go into buckets by the hash of their image, so that equal files meet. A panel shows the most frequent ones.
    """
    number = num_buckets(run.num_units("text"))
    buckets = Buckets(run.scratch / "by_file", number)
    dropped = Dropped(run.scratch / "dropped", number, run.num_shards)
    for texts, images in zip(run.texts(), run.images(), strict=True):
        captions = _captions(texts, images)
        buckets.add(captions, captions["image_high"].to_numpy() % number)
    shown: list[list[str | float | int | None]] = []
    for table in buckets:
        counts = table.group_by(FILE).aggregate(
            [("text", "count_distinct"), ("image", "count_distinct"), ("uid", "min")]
        )
        counts = counts.filter(pc.greater(counts["text_count_distinct"], config.max_captions))
        dropped.add(table.join(counts.select(FILE), FILE, join_type="inner").select(["shard", "unit"]))
        rows = counts.select(["uid_min", "text_count_distinct", "image_count_distinct"]).to_pylist()
        shown = sorted([*shown, *(list(row.values()) for row in rows)], key=lambda row: (-row[1], row[0]))[:NUM_SHOWN]
    run.details = TablePanel(
        title="Placeholders", note="Files under too many captions, by the smallest uid of each. All were dropped.",
        order=13, columns=["uid", "different captions", "images"], rows=shown,
    ).model_dump(mode="json")  # fmt: skip
    yield from dropped.passing(run.images())


def _captions(texts: pa.Table, images: pa.Table) -> pa.Table:
    """Join each caption with the hash of its image's file."""
    at = np.searchsorted(images["unit"].to_numpy(), texts["row"].to_numpy())
    files = images.select([*FILE, "shard", "unit", "uid"]).take(at)
    image = files["shard"].to_numpy().astype(np.int64) << 32 | files["unit"].to_numpy()
    return files.append_column("text", texts["text_high"]).append_column("image", pa.array(image))
