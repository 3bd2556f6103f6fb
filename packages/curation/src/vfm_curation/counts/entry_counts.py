"""Counts of entries by the tasks of a pass: a small file for each shard, summed when all shards are finished."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vfm_curation.counts.probabilities import Ids, Integers
from vfm_curation.shard_files import whole_file


def counts_file(folder: Path, shard: int) -> Path:
    """Build the path of a shard's counts."""
    return folder / f"{shard:08d}.npy"


def write_counts(folder: Path, shard: int, ids: Ids) -> None:
    """Write how often each entry occurs in a shard.

    The file has two rows, entries and counts, without zeros.

    Args:
        folder: folder for the file.
        shard: number of the shard.
        ids: ids of the matched entries.
    """
    counts = np.bincount(ids) if len(ids) else np.zeros(0, np.int64)
    entries = np.flatnonzero(counts)
    with whole_file(counts_file(folder, shard)) as part, part.open("wb") as stream:
        np.save(stream, np.stack([entries, counts[entries]]))


def total_counts(folder: Path, shards: Iterable[int], num_entries: int) -> Integers:
    """Sum the counts of shards, (num_entries,)."""
    totals = np.zeros(num_entries, dtype=np.int64)
    for shard in shards:
        entries, counts = np.load(counts_file(folder, shard))
        totals[entries] += counts
    return totals
