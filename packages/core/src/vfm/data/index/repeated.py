"""Repeat samples in an epoch as often as their factors say, drawn by the seed and the epoch."""

# N samples

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Integers = NDArray[np.int64]


class RepeatedEpochs:
    """`Epochs` of a source with repetitions.

    A sample with factor r occurs r times on average, rounded up or down.
    """

    def __init__(self, shard_sizes: ArrayLike, factors: NDArray[np.float64], seed: int) -> None:
        """Repeat samples.

        Args:
            shard_sizes: Number of samples of each shard.
            factors: How often each sample occurs in an epoch on average, (N,). Not all are 0.
            seed: Seed of the draws, together with the epoch.
        """
        self.shard_sizes: Integers = np.asarray(shard_sizes, dtype=np.int64)
        self.factors = factors
        self.seed = seed
        self._starts = np.cumsum(self.shard_sizes) - self.shard_sizes
        self._counts: tuple[int, Integers] | None = None
        self._ends: list[int] = []

    def at(self, position: int) -> tuple[int, int]:
        """Find the epoch at a position of the stream, and the position where the epoch begins."""
        while not self._ends or self._ends[-1] <= position:
            begin = self._ends[-1] if self._ends else 0
            self._ends.append(begin + int(self._of_epoch(len(self._ends)).sum()))
        epoch = int(np.searchsorted(self._ends, position, side="right"))
        begin = self._ends[epoch - 1] if epoch else 0
        return epoch, begin

    def sizes(self, epoch: int) -> Integers:
        """Count the samples of each shard in the epoch, with repetitions, (num_shards,)."""
        before = np.concatenate([[0], np.cumsum(self._of_epoch(epoch))])
        sizes: Integers = before[self._starts + self.shard_sizes] - before[self._starts]
        return sizes

    def samples(self, epoch: int, shard: int) -> Integers:
        """List the sample numbers of a shard, ascending, with repetitions."""
        start = int(self._starts[shard])
        size = int(self.shard_sizes[shard])
        return np.repeat(np.arange(start, start + size), self._of_epoch(epoch)[start : start + size])

    def sample(self, epoch: int, number: int) -> int:
        """Map any number to a sample with a factor above 0."""
        samples = np.flatnonzero(self.factors)
        return int(samples[number % len(samples)])

    def _of_epoch(self, epoch: int) -> Integers:
        if self._counts is None or self._counts[0] != epoch:
            whole = np.floor(self.factors)
            chance = np.random.default_rng((self.seed, epoch, 1)).random(len(self.factors))
            self._counts = epoch, (whole + (chance < self.factors - whole)).astype(np.int64)
        return self._counts[1]
