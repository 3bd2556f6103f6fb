"""The order of training samples, a pure function of (seed, epoch), the same for all workers, ranks and restarts.

Shards are permuted, then samples are shuffled within windows of `shuffle_shards` shards, so that a large pool is read
one window at a time. Epochs follow each other without a gap, so a position in the endless stream determines its sample.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOWS_IN_MEMORY = 2  # a batch may lie in two windows
Integers = NDArray[np.int64]


class Epochs(Protocol):
    """The numbers of the samples in each epoch. All methods are pure functions of the epoch."""

    def at(self, position: int) -> tuple[int, int]:
        """Find the epoch at a position of the stream, and the position where the epoch begins."""
        ...

    def sizes(self, epoch: int) -> Integers:
        """Count the samples of each shard in the epoch, (num_shards,)."""
        ...

    def samples(self, epoch: int, shard: int) -> Integers:
        """List the numbers of a shard's samples in the epoch, ascending."""
        ...

    def sample(self, epoch: int, number: int) -> int:
        """Map any number to a sample of the epoch."""
        ...


class Order(Protocol):
    """An endless stream of sample numbers that can be entered anywhere."""

    def __call__(self, start: int, stop: int) -> Integers:
        """List the sample numbers at positions `start` to `stop` of the stream."""
        ...

    def of_epochs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """List the samples at positions `start` to `stop` as (epoch, sample number)."""
        ...


class SameEpochs:
    """`Epochs` that all contain every sample, numbered shard by shard."""

    def __init__(self, shard_sizes: ArrayLike) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.starts = np.cumsum(self.shard_sizes) - self.shard_sizes
        self.num_samples = int(self.shard_sizes.sum())

    def at(self, position: int) -> tuple[int, int]:
        """Find the epoch at a position, and its beginning. All epochs have the same length."""
        return position // self.num_samples, position // self.num_samples * self.num_samples

    def sizes(self, epoch: int) -> Integers:
        """Get the sizes of the shards. They are the same in every epoch."""
        return self.shard_sizes

    def samples(self, epoch: int, shard: int) -> Integers:
        """List all samples of the shard."""
        return np.arange(self.starts[shard], self.starts[shard] + self.shard_sizes[shard])

    def sample(self, epoch: int, number: int) -> int:
        """Map a number to a sample, modulo the number of samples."""
        return number % self.num_samples


class SampleOrder:
    """The shuffled `Order` of a dataset.

    Memory and the time to enter the stream depend on the size of a window, not on the size of the dataset.
    """

    def __init__(self, epochs: Epochs, *, seed: int, shuffle_shards: int) -> None:
        """Shuffle these epochs.

        Raises:
            ValueError: If `shuffle_shards` is not positive.
        """
        self.epochs = epochs
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        if shuffle_shards < 1:
            raise ValueError(f"shuffle_shards must be at least 1, got {shuffle_shards}")
        self._layouts: OrderedDict[int, tuple[Integers, Integers]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], Integers] = OrderedDict()

    def __call__(self, start: int, stop: int) -> Integers:
        """List the sample numbers at positions `start` to `stop` of the stream."""
        return np.array(self.of_epochs(start, stop), dtype=np.int64).reshape(-1, 2)[:, 1]

    def of_epochs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """List the samples at positions `start` to `stop` as (epoch, sample number)."""
        numbered: list[tuple[int, int]] = []
        while start < stop:
            epoch, begin = self.epochs.at(start)
            position = start - begin
            shards, ends = self._layout(epoch)
            window = int(np.searchsorted(ends, position, side="right"))
            first = int(ends[window - 1]) if window else 0
            samples = self._window(epoch, window, shards)[position - first : position - first + stop - start]
            numbered += [(epoch, number) for number in samples.tolist()]
            start += len(samples)
        return numbered

    def _layout(self, epoch: int) -> tuple[Integers, Integers]:
        """Compute the epoch's order of shards, and the end of each window within the epoch."""
        if epoch not in self._layouts:
            sizes = self.epochs.sizes(epoch)
            shards = np.random.default_rng((self.seed, epoch)).permutation(len(sizes))
            firsts = np.arange(0, len(shards), self.shuffle_shards)
            self._layouts[epoch] = shards, np.cumsum(np.add.reduceat(sizes[shards], firsts))
            if len(self._layouts) > WINDOWS_IN_MEMORY:
                self._layouts.popitem(last=False)
        return self._layouts[epoch]

    def _window(self, epoch: int, window: int, shards: Integers) -> Integers:
        """Compute the shuffled sample numbers of a window."""
        key = epoch, window
        if key not in self._windows:
            chosen = shards[window * self.shuffle_shards : (window + 1) * self.shuffle_shards]
            samples = np.concatenate([self.epochs.samples(epoch, shard) for shard in chosen.tolist()])
            # window + 1: numpy gives (seed, epoch, 0) the same stream as (seed, epoch), which permutes the shards.
            np.random.default_rng((self.seed, epoch, window + 1)).shuffle(samples)
            self._windows[key] = samples
            if len(self._windows) > WINDOWS_IN_MEMORY:
                self._windows.popitem(last=False)
        return self._windows[key]
