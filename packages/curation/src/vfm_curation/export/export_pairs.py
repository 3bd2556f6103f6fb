"""Table of pairs of an export: every text that was matched or filtered, with keys that join it to the user's own files.

One shard is one task and a file in the folder `pairs.parquet`. Readers of parquet take the folder for one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vfm.data import Source, open_dataset, read_subset_shard
from vfm.plugin import CuratedSubset, Matches, Metadata, Pool
from vfm_curation.counts.matches import check_files, matches_file
from vfm_curation.filters.survivors import VERDICTS_FOLDER, shard_file
from vfm_curation.metadata import load_entries
from vfm_curation.pool_texts import texts_of
from vfm_curation.shard_files import finished_summary, made_from, read_arrow_file, write_shard_file
from vfm_curation.summaries import TaskSummary

PAIRS_FOLDER = "pairs.parquet"
PLACE = ["row", "language", "text_index"]  # of a text in its shard
TEXT_ORDER = [(name, "ascending") for name in PLACE]
BALANCED = "balanced"  # the reason of a text that matched and lost the draw
VERSION = 1


@dataclass(frozen=True)
class PairsJob:
    """Settings that the tasks share. The files go to `folder`."""

    subset: Path
    folder: Path


def pairs_schema() -> pa.Schema:
    """Define the schema. Entries are null if the subset is from a filter. Reason is '' if the text is kept.

    uid, key, url and text are the sample's own, shard is the path of its file and row its number there.
    """
    join = dict.fromkeys(("uid", "key", "url", "shard"), pa.string())
    text = {"row": pa.int32(), "language": pa.string(), "text_index": pa.int32(), "text": pa.string()}
    outcome = {"entries": pa.list_(pa.string()), "probability": pa.float32(), "kept": pa.bool_(), "reason": pa.string()}
    return pa.schema({**join, **text, **outcome})


@lru_cache(maxsize=1)
def _opened(path: Path) -> tuple[CuratedSubset, Source, Path | None, pa.Array | None]:
    """Open the subset's pool, and the matches and entries that the subset came from, once in each process."""
    subset = CuratedSubset.load(path)
    source = open_dataset(Pool.load(subset.linked(subset.pool)))
    if not subset.matches:
        return subset, source, None, None
    matches = Matches.load(subset.linked(subset.matches))
    check_files(matches.path)
    entries = load_entries(Metadata.load(matches.linked(matches.metadata)))["entry"].combine_chunks()
    return subset, source, matches.path, entries


def write_pairs(job: PairsJob, shard: int) -> TaskSummary:
    """Write the pairs of a shard."""
    subset, source, matches, entries = _opened(job.subset)
    file = shard_file(job.folder, shard)
    source_hash = made_from("pairs", shard, VERSION)
    finished = finished_summary(file, source_hash)
    if finished:
        return TaskSummary.of(finished)
    if matches is None:
        table = _filtered(subset.path, shard)
    else:
        table = _matched(subset.path, matches, entries, shard)
    table = _joined(source, shard, table).select(pairs_schema().names).cast(pairs_schema())
    summary = TaskSummary(num_texts=len(table))
    write_shard_file(file, table, source_hash, vars(summary))
    return summary


def _matched(subset: Path, matches: Path, entries: pa.Array, shard: int) -> pa.Table:
    """Read the balanced texts of a shard with their entries. They are in the order of the subset."""
    table = read_subset_shard(subset, shard)
    in_shard = read_arrow_file(matches_file(matches, shard), [*PLACE, "ids"])
    # Arrow sorts neither lists nor texts in a dictionary.
    order = in_shard.select(PLACE).set_column(1, "language", in_shard["language"].cast(pa.string()))
    lists = in_shard["ids"].combine_chunks().take(pc.sort_indices(order, TEXT_ORDER))
    words = pa.ListArray.from_arrays(lists.offsets, entries.take(lists.values))
    return table.append_column("entries", words).append_column("reason", pc.if_else(table["kept"], "", BALANCED))


def _filtered(subset: Path, shard: int) -> pa.Table:
    """Read all texts of a shard that a filter saw, with its reason. The probability is 1 or 0."""
    table = pq.read_table(shard_file(subset / VERDICTS_FOLDER, shard), page_checksum_verification=True)
    kept = pc.equal(table["reason"], "")
    table = table.append_column("kept", kept).append_column("probability", kept.cast(pa.float32()))
    return table.append_column("entries", pa.nulls(len(table), pa.list_(pa.string())))


def _joined(source: Source, shard: int, table: pa.Table) -> pa.Table:
    """Add the text, the key and the URL of each row, and the path of the shard."""
    if not len(table):
        return pairs_schema().empty_table()
    numbers = pa.array(np.arange(len(table)))
    texts = texts_of(source, shard).select([*PLACE, "text"])
    # Arrow's join does not keep the order of rows, so they are numbered before it and sorted after it.
    joined = table.select(PLACE).append_column("number", numbers).join(texts, PLACE).sort_by("number")
    rows, image = np.unique(table["row"].to_numpy(), return_inverse=True)
    of_image = join_columns(source, shard, rows)
    columns = {name: of_image[name].take(pa.array(image)) for name in of_image.column_names}
    own_columns = {name: table[name] for name in table.column_names if name not in columns}
    return pa.table({**own_columns, **columns, "text": joined["text"]})


def join_columns(source: Source, shard: int, rows: np.ndarray) -> pa.Table:
    """Build the columns that join samples of a shard to the user's files.

    They are key, url, shard (its path) and row.

    Args:
        source: The pool or subset.
        shard: Number of the shard.
        rows: Rows of the samples.
    """
    reader = source.index.open(shard)
    return pa.table(
        {
            "key": pa.array([reader.key(row) for row in rows.tolist()], pa.string()),
            "url": source.index.open(shard).urls(rows),
            "shard": pa.repeat(source.index.shards[shard].path, len(rows)),
            "row": pa.array(rows.astype(np.int32)),
        }
    )
