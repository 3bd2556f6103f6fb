"""Several data sets as one stream of training samples, each with its share: a pure function of (seed, place).

Each has its own endless shuffled stream (`SampleOrder`); the mixture says whose turn it is. In every block of places
each has the same number of turns, in a drawn order, so that the stream can be entered anywhere at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vfm.config import UserError
from vfm.data.order import Order
from vfm.data.sample import Sample, uid_of
from vfm.data.source import Source

BLOCK = 4096  # places; shares are kept to one in so many
_STREAM = 3  # sets the draws of turns apart from those of shards and windows


class Mixture:
    """The samples of several sources, numbered one source after the other; for training, as `Source` is."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        """Joins them.

        Raises:
            UserError: a source is empty, or its share is less than one in `BLOCK`.
        """
        self.sources, self.turns = list(sources), turns_of(weights)
        for source, turns in zip(self.sources, self.turns, strict=True):
            if not len(source):
                raise UserError(f"{source.directory}: the data set has no samples to train on")
            if not turns:
                raise UserError(f"{source.directory}: its weight is below 1 in {BLOCK} of all weights")
        self.starts = np.cumsum([0, *map(len, self.sources)])

    @property
    def directory(self) -> Path:
        """Of the first one."""
        return self.sources[0].directory

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        """The sample of a number; raises BadSample."""
        source, number = self._locate(index)
        return self._named(source[number], index)

    def sample(self, index: int, epoch: int) -> Sample:
        """The sample as an epoch of its own source has it; raises BadSample."""
        source, number = self._locate(index)
        return self._named(source.sample(number, epoch), index)

    def where(self, index: int) -> str:
        """The address of a sample for people: its shard and its key."""
        source, number = self._locate(index)
        return source.where(number)

    def order(self, *, seed: int, shuffle_shards: int) -> Order:
        """The stream of sample numbers, each source's by its own shuffle."""
        orders = [source.order(seed=seed, shuffle_shards=shuffle_shards) for source in self.sources]
        return _MixedOrder(orders, self.starts, self.turns, seed)

    def another(self, epoch: int, index: int, number: int) -> int:
        """A sample of the same source and epoch that any number leads to, in the place of one that cannot be used."""
        part = self._part(index)
        source, start = self.sources[part], int(self.starts[part])
        return start + source.another(epoch, index - start, number)

    def _named(self, sample: Sample, index: int) -> Sample:
        """The sample under a uid of its own, where it is made of its key: every crawl has a 000000."""
        if sample.uid != uid_of(sample.key):
            return sample
        return replace(sample, uid=uid_of(f"{self._part(index)}/{sample.key}"))

    def _part(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def _locate(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = self._part(index)
        return self.sources[part], index - int(self.starts[part])


def turns_of(weights: Sequence[float]) -> NDArray[np.int64]:
    """How many places of a block each one has: its share, rounded by largest remainders so that they fill it."""
    wanted = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    turns: NDArray[np.int64] = np.floor(wanted).astype(np.int64)
    left = BLOCK - int(turns.sum())
    turns[np.argsort(turns - wanted, kind="stable")[:left]] += 1
    return turns


class _MixedOrder:
    def __init__(self, orders: Sequence[Order], starts: NDArray[np.int64], turns: NDArray[np.int64], seed: int) -> None:
        self.orders, self.starts, self.turns, self.seed = orders, starts, turns, seed
        self._block = lru_cache(4)(self._drawn)

    def __call__(self, start: int, stop: int) -> NDArray[np.int64]:
        """The sample numbers at places `start` to `stop` of the stream."""
        return np.array([number for _, number in self.of_epochs(start, stop)], dtype=np.int64)

    def of_epochs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The same, each as (epoch of its source, sample number)."""
        found: list[tuple[int, int]] = []
        while start < stop:
            block, first = divmod(start, BLOCK)
            last = min(BLOCK, first + stop - start)
            parts = self._block(block)
            coming = [iter(self._of_part(part, block, parts, first, last)) for part in range(len(self.orders))]
            found += [next(coming[part]) for part in parts[first:last].tolist()]
            start += last - first
        return found

    def _of_part(self, part: int, block: int, parts: NDArray[np.int64], first: int, last: int) -> list[tuple[int, int]]:
        """What a source gives to places `first` to `last` of a block."""
        before = block * int(self.turns[part]) + int(np.count_nonzero(parts[:first] == part))
        count = int(np.count_nonzero(parts[first:last] == part))
        start = int(self.starts[part])
        return [(epoch, start + number) for epoch, number in self.orders[part].of_epochs(before, before + count)]

    def _drawn(self, block: int) -> NDArray[np.int64]:
        """Whose turn it is at each place of a block."""
        parts = np.repeat(np.arange(len(self.turns)), self.turns)
        np.random.default_rng((self.seed, _STREAM, block + 1)).shuffle(parts)
        return parts
