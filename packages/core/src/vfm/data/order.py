"""The order in which samples are seen: a pure function of (seed, epoch), the same for all workers, ranks and restarts.

Shards are permuted, then samples are shuffled within windows of `shuffle_shards` shards, so that a large pool is read a
window at a time. Epochs follow one another without a gap: a place in the endless stream says which sample stands there.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOWS_IN_MEMORY = 2
Integers = NDArray[np.int64]


class Epochs(Protocol):
    """Which samples each epoch has, by number; pure functions of the epoch."""

    def at(self, place: int) -> tuple[int, int]:
        """The epoch at a place of the stream, and the place where it begins."""
        ...

    def sizes(self, epoch: int) -> Integers:
        """Samples that the epoch has of each shard, (num_shards,)."""
        ...

    def samples(self, epoch: int, shard: int) -> Integers:
        """Their numbers in one shard, ascending."""
        ...

    def sample(self, epoch: int, number: int) -> int:
        """A sample of the epoch that any number leads to."""
        ...


class Order(Protocol):
    """An endless stream of sample numbers, which can be entered anywhere."""

    def __call__(self, start: int, stop: int) -> Integers:
        """The sample numbers at places `start` to `stop` of the stream."""
        ...

    def of_epochs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The same, each as (epoch, sample number)."""
        ...


class SameEpochs:
    """Every epoch has all samples, numbered shard by shard."""

    def __init__(self, shard_sizes: ArrayLike) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.starts = np.cumsum(self.shard_sizes) - self.shard_sizes
        self.num_samples = int(self.shard_sizes.sum())

    def at(self, place: int) -> tuple[int, int]:
        """Epochs are equally long."""
        return place // self.num_samples, place // self.num_samples * self.num_samples

    def sizes(self, epoch: int) -> Integers:
        """The shards' own."""
        return self.shard_sizes

    def samples(self, epoch: int, shard: int) -> Integers:
        """All of the shard."""
        return np.arange(self.starts[shard], self.starts[shard] + self.shard_sizes[shard])

    def sample(self, epoch: int, number: int) -> int:
        """By the remainder."""
        return number % self.num_samples


class SampleOrder:
    """The endless stream of sample numbers, which can be entered anywhere.

    Memory and time to enter are those of one window, not of the data set.
    """

    def __init__(self, epochs: Epochs, *, seed: int, shuffle_shards: int) -> None:
        """An order over these epochs.

        Raises:
            ValueError: there are no shards, or the window is empty.
        """
        self.epochs, self.seed, self.shuffle_shards = epochs, seed, shuffle_shards
        if shuffle_shards < 1:
            raise ValueError(f"windows of {shuffle_shards} shards: it must be positive")
        self._layouts: OrderedDict[int, tuple[Integers, Integers]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], Integers] = OrderedDict()

    def __call__(self, start: int, stop: int) -> Integers:
        """The sample numbers at places `start` to `stop` of the stream."""
        return np.array([number for _, number in self.of_epochs(start, stop)], dtype=np.int64)

    def of_epochs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The same, each as (epoch, sample number)."""
        found: list[tuple[int, int]] = []
        while start < stop:
            epoch, begin = self.epochs.at(start)
            place = start - begin
            shards, ends = self._layout(epoch)
            window = int(np.searchsorted(ends, place, side="right"))
            first = int(ends[window - 1]) if window else 0
            samples = self._window(epoch, window, shards)[place - first : place - first + stop - start]
            found += [(epoch, number) for number in samples.tolist()]
            start += len(samples)
        return found

    def _layout(self, epoch: int) -> tuple[Integers, Integers]:
        """The epoch's order of shards, and where in the epoch each window ends."""
        if epoch not in self._layouts:
            sizes = self.epochs.sizes(epoch)
            shards = np.random.default_rng((self.seed, epoch)).permutation(len(sizes))
            firsts = np.arange(0, len(shards), self.shuffle_shards)
            self._layouts[epoch] = shards, np.cumsum(np.add.reduceat(sizes[shards], firsts))
            if len(self._layouts) > WINDOWS_IN_MEMORY:
                self._layouts.popitem(last=False)
        return self._layouts[epoch]

    def _window(self, epoch: int, window: int, shards: Integers) -> Integers:
        """The sample numbers of a window, shuffled."""
        key = epoch, window
        if key not in self._windows:
            chosen = shards[window * self.shuffle_shards : (window + 1) * self.shuffle_shards]
            samples = np.concatenate([self.epochs.samples(epoch, shard) for shard in chosen.tolist()])
            # Not (seed, epoch, window): numpy gives (seed, epoch, 0) the stream of (seed, epoch), the order of shards.
            np.random.default_rng((self.seed, epoch, window + 1)).shuffle(samples)
            self._windows[key] = samples
            if len(self._windows) > WINDOWS_IN_MEMORY:
                self._windows.popitem(last=False)
        return self._windows[key]
