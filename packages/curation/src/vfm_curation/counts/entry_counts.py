"""Counts of entries by the tasks of a pass: a small file for each shard, summed when all shards are finished."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vfm_curation.counts.probabilities import Ids, Integers
from vfm_curation.shard_files import whole_file
from vfm_curation.simd import compiled


def counts_file(folder: Path, shard: int) -> Path:
    """Build the path of a shard's counts."""
    return folder / f"{shard:08d}.npy"


def write_counts(folder: Path, shard: int, ids: Ids) -> None:
    """Write how often each entry occurs in a shard.

    The file has two rows, entries and counts, without zeros.

    Args:
        folder: Folder for the file.
        shard: Number of the shard.
        ids: Ids of the matched entries.
    """
    with whole_file(counts_file(folder, shard)) as part, part.open("wb") as stream:
        np.save(stream, _counted(ids, ids.max(initial=-1) + 1))


@compiled
def _counted(ids: Ids, num_entries: int) -> Integers:
    """Count the entries that occur, in the order in which they first do."""
    counts = np.zeros(num_entries, np.int32)
    entries = np.empty(min(len(ids), num_entries), np.int32)
    num_distinct = 0
    for entry in ids:
        if not counts[entry]:
            entries[num_distinct] = entry
            num_distinct += 1
        counts[entry] += 1
    result = np.empty((2, num_distinct), np.int64)
    for place in range(num_distinct):
        result[0, place] = entries[place]
        result[1, place] = counts[entries[place]]
    return result


def total_counts(folder: Path, shards: Iterable[int], num_entries: int) -> Integers:
    """Sum the counts of shards, (num_entries,)."""
    totals = np.zeros(num_entries, dtype=np.int64)
    for shard in shards:
        entries, counts = np.load(counts_file(folder, shard))
        totals[entries] += counts
    return totals
