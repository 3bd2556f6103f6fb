"""The order in which samples are seen: a pure function of (seed, epoch), the same for all workers, ranks and restarts.

Shards are permuted, then samples are shuffled within windows of `shuffle_shards` shards, so that a large pool is read a
window at a time. Epochs follow one another without a gap: a place in the endless stream says which sample stands there.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOWS_IN_MEMORY = 2


class SampleOrder:
    """The endless stream of sample numbers, which can be entered anywhere.

    Memory and time to enter are those of one window, not of the data set.
    """

    def __init__(self, shard_sizes: ArrayLike, *, seed: int, shuffle_shards: int) -> None:
        """An order over shards of these sizes.

        Raises:
            ValueError: there are no samples, or the window is empty.
        """
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.sizes = sizes
        self.starts = np.cumsum(sizes) - sizes
        self.num_samples = int(sizes.sum())
        self.seed, self.shuffle_shards = seed, shuffle_shards
        if self.num_samples < 1 or shuffle_shards < 1:
            raise ValueError(f"{self.num_samples} samples in windows of {shuffle_shards} shards: both must be positive")
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def __call__(self, start: int, stop: int) -> NDArray[np.int64]:
        """The sample numbers at places `start` to `stop` of the stream; place / num_samples is the epoch."""
        parts = []
        while start < stop:
            epoch, place = divmod(start, self.num_samples)
            shards, ends = self._epoch(epoch)
            window = int(np.searchsorted(ends, place, side="right"))
            first = int(ends[window - 1]) if window else 0
            samples = self._window(epoch, window, shards)[place - first : place - first + stop - start]
            parts.append(samples)
            start += len(samples)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of shards, and where in the epoch each window ends."""
        if epoch not in self._epochs:
            shards = np.random.default_rng((self.seed, epoch)).permutation(len(self.sizes))
            firsts = np.arange(0, len(shards), self.shuffle_shards)
            self._epochs[epoch] = shards, np.cumsum(np.add.reduceat(self.sizes[shards], firsts))
            if len(self._epochs) > WINDOWS_IN_MEMORY:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int, shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample numbers of a window, shuffled."""
        key = epoch, window
        if key not in self._windows:
            chosen = shards[window * self.shuffle_shards : (window + 1) * self.shuffle_shards]
            samples = np.concatenate([self.starts[shard] + np.arange(self.sizes[shard]) for shard in chosen])
            np.random.default_rng((self.seed, epoch, window)).shuffle(samples)
            self._windows[key] = samples
            if len(self._windows) > WINDOWS_IN_MEMORY:
                self._windows.popitem(last=False)
        return self._windows[key]
