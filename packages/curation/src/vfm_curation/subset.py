"""Balances a pool shard by shard from its matches on disk: which texts are kept, and how many to expect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.data import SUBSET_FILE, drawn, subset_schema, text_keys
from vfm_curation.matches import ShardMatches, count_of_each, read_shards
from vfm_curation.probabilities import Floats, Integers, add_to_entries, text_probability
from vfm_curation.shard_files import FEW_VALUES
from vfm_curation.simd import compiled
from vfm_curation.stages.subset import TextsOfImage


@dataclass(frozen=True)
class BalancedShard:
    """The matched texts of one shard with the probability of keeping each, (num_texts,), and whether it is kept."""

    matches: ShardMatches
    probability: Floats
    kept: NDArray[np.bool_]

    @cached_property
    def table(self) -> pa.Table:
        """The rows of `subset.parquet`: sorted, kept or not, with the probability of each."""
        table = self.matches.table.append_column("probability", pa.array(self.probability.astype(np.float32)))
        table = table.append_column("kept", pa.array(self.kept)).select(subset_schema().names).cast(subset_schema())
        if len(self.matches.table["language"].unique()) < 2:
            return table  # matching wrote it in order of row and text
        return table.sort_by([(name, "ascending") for name in ("row", "language", "text_index")])


def balance_shard(
    matches: ShardMatches, entry_probability: Floats, seed: int, texts: TextsOfImage = "every"
) -> BalancedShard:
    """Draw for each text of a shard, from its identity and the seed."""
    probability = text_probability(matches.ids, matches.offsets, entry_probability)
    keys = text_keys(*(matches.table[column] for column in ("uid", "language", "text_index")))
    images = matches.table["row"].to_numpy() if texts == "one_per_image" else None
    return BalancedShard(matches, probability, drawn(keys, probability, seed, images=images))


@dataclass(frozen=True)
class Expectation:
    """The expected number of kept texts, and of kept texts with each entry, (num_entries,)."""

    size: float
    counts: Floats


def expected_size(directory: Path, entry_probability: Floats, texts: TextsOfImage = "every") -> float:
    """Return the expected number of kept texts of a `Matches` artifact: the sum of their probabilities.

    The sum is exact to 2^-32 for each text and, unlike a sum of floats, the same in any order. `t` is solved from it,
    so the kept set would otherwise depend on how the pool is split into shards.
    """
    total = 0
    for shard in read_shards(directory, only_ids=texts == "every"):
        total += int(_in_units(_chances(shard, entry_probability[:, None], texts))[0])
    return total / 2.0**32


def expectations(
    directory: Path, entry_probabilities: Sequence[Floats], texts: TextsOfImage = "every"
) -> list[Expectation]:
    """Return the expectations for several choices of probabilities, in one pass over the matches."""
    choices = np.stack(entry_probabilities, axis=1)
    totals, counts = [0] * choices.shape[1], np.zeros_like(choices)
    for shard in read_shards(directory, only_ids=texts == "every"):
        chances = _chances(shard, choices, texts)
        totals = [total + units for total, units in zip(totals, _in_units(chances).tolist(), strict=True)]
        add_to_entries(counts, shard.ids, shard.offsets, chances)
    return [Expectation(total / 2.0**32, counts[:, choice]) for choice, total in enumerate(totals)]


def _chances(shard: ShardMatches, choices: Floats, texts: TextsOfImage) -> Floats:
    """Return the probability of keeping each text, which includes that of being chosen as its image's text.

    Args:
        shard: the texts.
        choices: probabilities of each entry for K choices, (num_entries, K).
        texts: how texts are drawn.

    Returns:
        (num_texts, K).
    """
    chances = text_probability(shard.ids, shard.offsets, choices)
    if texts == "one_per_image":
        _, image, sizes = np.unique(shard.table["row"].to_numpy(), return_inverse=True, return_counts=True)
        chances /= sizes[image][:, None]
    return chances


@compiled
def _in_units(chances: Floats) -> Integers:
    """Sum the probabilities of each choice, (num_texts, K), in units of 2^-32, (K,)."""
    units = np.zeros(chances.shape[1], np.int64)
    for text in range(len(chances)):
        for choice in range(len(units)):
            units[choice] += np.int64(np.rint(chances[text, choice] * 2.0**32))
    return units


@dataclass
class SubsetTotals:
    """Totals of a subset: kept texts with each entry, kept texts and images, keys of the kept captions.

    Matched and kept texts are also counted by language: the detected one if languages were detected, else the key.
    """

    counts: Integers
    num_texts: int = 0
    num_samples: int = 0
    keys: set[str] = field(default_factory=set)
    matched: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)


def write_subset(directory: Path, shards: Iterable[BalancedShard], num_entries: int) -> SubsetTotals:
    """Write `subset.parquet` as `vfm.data` reads it, one row group for each shard that has a matched text."""
    totals = SubsetTotals(np.zeros(num_entries, dtype=np.int64))
    with pq.ParquetWriter(
        directory / SUBSET_FILE, subset_schema(), compression="zstd", use_dictionary=FEW_VALUES
    ) as writer:
        for shard in shards:
            if not len(shard.kept):
                continue
            writer.write_table(shard.table)
            kept = shard.matches.table.select(["row", "language"]).filter(pa.array(shard.kept))
            add_to_entries(totals.counts[:, None], shard.matches.ids, shard.matches.offsets, shard.kept[:, None])
            totals.num_texts += len(kept)
            totals.num_samples += len(kept["row"].unique())
            totals.keys.update(kept["language"].unique().to_pylist())
            totals.matched.update(count_of_each(shard.matches.languages))
            totals.kept.update(count_of_each(shard.matches.languages.filter(pa.array(shard.kept))))
    return totals
