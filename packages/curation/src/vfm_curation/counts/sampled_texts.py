"""Sample of the matched texts of a pool, used to estimate how many texts other choices of t would keep.

Each shard of `curation.match` draws a fixed number of its matched texts, so the sample does not grow with the pool. A
drawn text stands for several texts: the number of texts of its shard divided by the number drawn. The sample of a small
pool has all texts, and the estimates are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vfm_curation.counts.matches import ShardMatches
from vfm_curation.counts.probabilities import Floats, Ids, Integers, add_to_entries, in_units, text_probability
from vfm_curation.runtime import TextsOfImage
from vfm_curation.shard_files import whole_file

SAMPLE_FILE = "sample.npz"
NUM_SAMPLED = 1 << 18  # texts of a pool: the standard error of an estimated size is at most 0.2 % of the pool


@dataclass(frozen=True)
class Expectation:
    """The expected number of kept texts, and of kept texts with each entry, (num_entries,)."""

    size: float
    counts: Floats


@dataclass(frozen=True)
class SampledTexts:
    """Sample of matched texts. The entries of text i are ids[offsets[i]:offsets[i + 1]].

    `siblings` is the number of matched texts of a text's image, `weights` the number of texts that a text stands for.
    """

    ids: Ids
    offsets: Integers
    siblings: NDArray[np.int64]
    weights: Floats

    @classmethod
    def of_shard(cls, matches: ShardMatches, shard: int, num_shards: int) -> SampledTexts:
        """Draw the sample of a shard. The draw depends on the number of the shard only."""
        number = len(matches.table)
        most = max(1, NUM_SAMPLED // max(1, num_shards))
        chosen = np.arange(number)
        if number > most:
            # The shard's number is the seed, so the sample depends on no other shard.
            chosen = np.sort(np.random.default_rng(shard).choice(number, most, replace=False, shuffle=False))
        sizes = np.diff(matches.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        # Positions of the chosen texts' ids, one text after the other.
        positions = np.repeat(matches.offsets[chosen] - offsets[:-1], sizes) + np.arange(offsets[-1])
        siblings = siblings_of(matches.table["row"].to_numpy())[chosen]
        # Each chosen text stands for as many texts of the shard.
        weights = np.full(len(chosen), number / max(1, len(chosen)))
        return cls(matches.ids[positions], offsets, siblings, weights)

    @classmethod
    def joined(cls, parts: Iterable[SampledTexts]) -> SampledTexts:
        """Concatenate several samples in their order."""
        ids: list[Ids] = [np.zeros(0, np.int32)]
        offsets = [np.zeros(1, np.int64)]
        siblings = [np.zeros(0, np.int64)]
        weights = [np.zeros(0)]
        start = 0
        for sample in parts:
            ids.append(sample.ids)
            offsets.append(start + sample.offsets[1:])
            start += int(sample.offsets[-1])
            siblings.append(sample.siblings)
            weights.append(sample.weights)
        return cls(np.concatenate(ids), np.concatenate(offsets), np.concatenate(siblings), np.concatenate(weights))

    def save(self, file: Path) -> None:
        """Write the file, whole or not at all."""
        with whole_file(file) as part, part.open("wb") as stream:
            np.savez(stream, **vars(self))

    @classmethod
    def load(cls, file: Path) -> SampledTexts:
        """Read a saved sample."""
        with np.load(file) as arrays:
            return cls(**arrays)

    @property
    def complete(self) -> bool:
        """Whether the sample has all matched texts of the pool."""
        return bool((self.weights == 1).all())

    def expectations(self, entry_probabilities: Sequence[Floats], texts: TextsOfImage) -> list[Expectation]:
        """Estimate the kept texts for several choices of the entries' probabilities."""
        choices = np.stack(entry_probabilities, axis=1)
        chances = text_probability(self.ids, self.offsets, choices)
        if texts == "one_per_image":
            chances /= self.siblings[:, None]
        chances *= self.weights[:, None]
        counts = np.zeros_like(choices)
        add_to_entries(counts, self.ids, self.offsets, chances)
        sizes = in_units(chances) / 2.0**32
        return [Expectation(float(size), counts[:, choice]) for choice, size in enumerate(sizes)]


def siblings_of(rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """Count for each text the texts with the same row, (num_texts,)."""
    if (rows[1:] > rows[:-1]).all():
        return np.ones(len(rows), np.int64)
    _, image, sizes = np.unique(rows, return_inverse=True, return_counts=True)
    siblings: NDArray[np.int64] = sizes[image]
    return siblings
