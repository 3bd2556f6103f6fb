"""Balancing a pool shard by shard, from its matches on disk: which texts are kept, and how many that will be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.data import SUBSET_FILE, subset_schema
from vfm_curation.balance import Floats, Integers, count_ids, kept, text_key, text_probability
from vfm_curation.shards import ShardMatches, read_shards


@dataclass(frozen=True)
class BalancedShard:
    """The matched texts of one shard with each one's chance, (num_texts,), and whether it is kept."""

    matches: ShardMatches
    probability: Floats
    kept: NDArray[np.bool_]

    @cached_property
    def table(self) -> pa.Table:
        """The kept texts as rows of `subset.parquet`: sorted, with the chance of each."""
        chance = pa.array(self.probability.astype(np.float32))
        table = self.matches.table.append_column("probability", chance).filter(pa.array(self.kept))
        order = [(name, "ascending") for name in ("shard", "row", "language", "text_index")]
        return table.select(subset_schema().names).cast(subset_schema()).sort_by(order)

    def kept_counts(self, num_entries: int) -> Integers:
        """Kept texts with each entry, (num_entries,)."""
        return count_ids([self.matches.ids[np.repeat(self.kept, np.diff(self.matches.offsets))]], num_entries)


def balance_shard(matches: ShardMatches, entry_probability: Floats, seed: int) -> BalancedShard:
    """Draws for each text of a shard, from its own identity and the seed."""
    probability = text_probability(matches.ids, matches.offsets, entry_probability)
    names = zip(*(matches.table[column].to_pylist() for column in ("uid", "language", "text_index")), strict=True)
    keys = np.fromiter((text_key(*name) for name in names), np.uint64, count=len(matches.table))
    return BalancedShard(matches, probability, kept(probability, keys, seed))


def expected_size(directory: Path, entry_probability: Floats) -> float:
    """Expected number of kept texts of a `Matches` artifact: the sum of their chances, before any draw.

    The sum is exact to 2^-32 a text and the same in any order, unlike one of floats: `t` is solved from it, and so the
    kept set would otherwise hang on the cut of the shards.
    """
    total = 0
    for shard in read_shards(directory, only_ids=True):
        probability = text_probability(shard.ids, shard.offsets, entry_probability)
        total += int(np.rint(probability * 2.0**32).astype(np.int64).sum())
    return total / 2.0**32


@dataclass
class SubsetTotals:
    """What a subset holds: kept texts with each entry, texts, images, languages."""

    counts: Integers
    num_texts: int = 0
    num_samples: int = 0
    languages: set[str] = field(default_factory=set)


def write_subset(directory: Path, shards: Iterable[BalancedShard], num_entries: int) -> SubsetTotals:
    """Writes `subset.parquet` as `vfm.data` reads it, a row group for each shard that keeps a text."""
    totals = SubsetTotals(np.zeros(num_entries, dtype=np.int64))
    with pq.ParquetWriter(directory / SUBSET_FILE, subset_schema(), compression="zstd") as writer:
        for shard in shards:
            if not len(shard.table):
                continue
            writer.write_table(shard.table)
            totals.counts += shard.kept_counts(num_entries)
            totals.num_texts += len(shard.table)
            totals.num_samples += len(shard.table["row"].unique())
            totals.languages.update(shard.table["language"].unique().to_pylist())
    return totals
