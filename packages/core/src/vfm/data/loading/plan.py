"""Plan the samples of each micro-batch of a training before any is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from vfm.data.samples.order import Order


class Planned(NamedTuple):
    """A micro-batch to read, with (epoch, sample number) of each sample and its earlier uses in the step."""

    step: int
    samples: list[tuple[int, int]]
    repeats: list[int]


class _Data(Protocol):
    @property
    def global_batch_size(self) -> int: ...

    @property
    def repeats(self) -> bool: ...

    def order(self) -> Order: ...


@dataclass(frozen=True)
class Plan:
    """Lazy sequence of the micro-batches of a rank.

    Attributes:
        data: The training data.
        steps: The steps.
        first: First sample of this rank in the global batch.
        share: Samples of this rank.
        micro: Samples of a micro-batch.
    """

    data: _Data
    steps: range
    first: int
    share: int
    micro: int

    def __iter__(self) -> Iterator[Planned]:
        order = self.data.order()
        for step in self.steps:
            start = self.first
            end = self.first + self.share
            repeats = self._repeats(order, step)
            begin = step * self.data.global_batch_size
            for first in range(start, end, self.micro):
                last = min(first + self.micro, end)
                yield Planned(step, order.of_epochs(begin + first, begin + last), repeats[first:last])

    def _repeats(self, order: Order, step: int) -> list[int]:
        """Count the earlier uses of each sample in the global batch. The counts are the same in every process."""
        size = self.data.global_batch_size
        if not self.data.repeats:
            return [0] * size
        uses: Counter[Any] = Counter()
        repeats = []
        for number in order(step * size, (step + 1) * size).tolist():
            repeats.append(uses[number])
            uses[number] += 1
        return repeats
