"""Mix several datasets into one stream of training samples by weight, as a pure function of (seed, position).

Each dataset has its own endless shuffled stream (`SampleOrder`), and the mixture chooses the dataset of each position.
A dataset has the same number of positions in every block, in random order, so that the stream can be entered anywhere
at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.index.source import Source
from vfm.data.reading.byte_ranges import read_together
from vfm.data.reading.open_files import max_open_shards
from vfm.data.reading.shard_cache import ShardCache
from vfm.data.samples.order import Order
from vfm.data.samples.sample import Sample, uid_of

BLOCK = 4096  # positions; also the resolution of the weights
_STREAM = 3  # separates the draws of the mixture from the draws of shards, and of windows except in epoch 3


class Mixture:
    """The samples of several sources, numbered one source after the other. Replaces a `Source` in training."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        """Join the sources. The shards that they keep open fit the limit of open files together.

        Raises:
            UserError: If a source is empty, or its weight is less than one in `BLOCK` of the sum.
        """
        self.sources, self.turns = list(sources), turns_of(weights)
        for source, turns in zip(self.sources, self.turns, strict=True):
            if not len(source):
                raise UserError(f"{source.directory}: the dataset has no samples to train on")
            if not turns:
                raise UserError(f"{source.directory}: its weight must be at least 1/{BLOCK} of the sum of weights")
            source.keep_open(max_open_shards(len(self.sources)))
        self.starts = np.cumsum([0, *map(len, self.sources)])

    def __reduce__(self) -> tuple[Any, ...]:
        return Mixture, (self.sources, self.turns.tolist())  # a process may have another limit of open files

    @property
    def directory(self) -> Path:
        """Folder of the first source."""
        return self.sources[0].directory

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def same_in_epochs(self) -> bool:
        """Whether a sample has the same texts in every epoch."""
        return all(source.same_in_epochs for source in self.sources)

    def __getitem__(self, index: int) -> Sample:
        """Read a sample by its number.

        Raises:
            BadSample: If the sample cannot be used.
        """
        source, number = self._locate(index)
        return self._named(source[number], index)

    def sample(self, index: int, epoch: int) -> Sample:
        """Read a sample with the texts that an epoch of its source uses.

        Raises:
            BadSample: If the sample cannot be used.
        """
        source, number = self._locate(index)
        return self._named(source.sample(number, epoch), index)

    def read_ahead(self, indices: Sequence[int], cache: ShardCache | None = None) -> None:
        """Read ahead the bytes of the given samples, from all sources at once."""
        spans = []
        for source, number in map(self._locate, indices):
            spans += source.spans([number])
        held = read_together(spans, cache)
        for source in self.sources:
            source.hold(held)

    def where(self, index: int) -> str:
        """Format the address of a sample for messages, from its shard and its key."""
        source, number = self._locate(index)
        return source.where(number)

    def order(self, *, seed: int, shuffle_shards: int) -> Order:
        """Create the stream of sample numbers. Each source is shuffled separately."""
        orders = [source.order(seed=seed, shuffle_shards=shuffle_shards) for source in self.sources]
        return _MixedOrder(orders, self.starts, self.turns, seed)

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to a sample of the same source and epoch, as a replacement for an unusable sample."""
        part = self._part(index)
        source, start = self.sources[part], int(self.starts[part])
        return start + source.another(epoch, index - start, number)

    def _named(self, sample: Sample, index: int) -> Sample:
        """Make the uid of a sample unique if it comes from its key, because every crawl has a sample 000000."""
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
    """Compute the number of positions of each source in a block, rounded by the largest-remainder method."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    turns: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    left = BLOCK - int(turns.sum())
    turns[np.argsort(turns - exact, kind="stable")[:left]] += 1  # the largest remainders get the rest
    return turns


class _MixedOrder:
    """The `Order` of a mixture."""

    def __init__(self, orders: Sequence[Order], starts: NDArray[np.int64], turns: NDArray[np.int64], seed: int) -> None:
        self.orders, self.starts, self.turns, self.seed = orders, starts, turns, seed
        self._block = lru_cache(4)(self._drawn)

    def __call__(self, start: int, stop: int) -> NDArray[np.int64]:
        """List the sample numbers at positions `start` to `stop` of the stream."""
        return np.array(self.of_epochs(start, stop), dtype=np.int64).reshape(-1, 2)[:, 1]

    def of_epochs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """List the samples at positions `start` to `stop` as (epoch of the source, sample number)."""
        samples: list[tuple[int, int]] = []
        while start < stop:
            block, first = divmod(start, BLOCK)
            last = min(BLOCK, first + stop - start)
            parts = self._block(block)
            # Take each source's samples in this range from its own stream, and interleave them by the block's draw.
            streams = [iter(self._of_part(part, block, parts, first, last)) for part in range(len(self.orders))]
            samples += [next(streams[part]) for part in parts[first:last].tolist()]
            start += last - first
        return samples

    def _of_part(self, part: int, block: int, parts: NDArray[np.int64], first: int, last: int) -> list[tuple[int, int]]:
        """List the samples of a source at positions `first` to `last` of a block."""
        before = block * int(self.turns[part]) + int(np.count_nonzero(parts[:first] == part))
        count = int(np.count_nonzero(parts[first:last] == part))
        start = int(self.starts[part])
        return [(epoch, start + number) for epoch, number in self.orders[part].of_epochs(before, before + count)]

    def _drawn(self, block: int) -> NDArray[np.int64]:
        """Draw the source of each position of a block."""
        parts = np.repeat(np.arange(len(self.turns)), self.turns)
        np.random.default_rng((self.seed, _STREAM, block + 1)).shuffle(parts)
        return parts
