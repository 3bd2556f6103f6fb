"""Order a stream of tars by the seed, the number of tars and the position alone.

A stream has lanes that are read side by side. Each lane reads one group of tars after another, and gives a run of
samples in turn. A group belongs to one lane, so a process that reads some lanes requests the tars of these lanes only,
and a lane can be entered by the sizes of the groups before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GROUP = 8  # tars of a lane that are read together, at most
ROWS = 64  # rows of each tar of a group whose order is shuffled together: a block
FIRST_ROWS = 32  # in the first block of a group, so that the first samples need fewer bytes
_LANES = 5  # separates the draws of blocks from the draws of groups


@dataclass(frozen=True)
class Group:
    """Tars that a lane reads together.

    It has their numbers, the epoch, and the number of the group in the epoch.
    """

    epoch: int
    number: int
    shards: tuple[int, ...]


@dataclass(frozen=True)
class Lanes:
    """The groups of each lane, and the lane of each position.

    Attributes:
        num_shards: Number of tars.
        most: Greatest number of lanes. There are no more lanes than tars.
        run: Samples that a lane gives before the next lane follows.
        seed: Seed of the order of the tars, and of the rows in each block.
    """

    num_shards: int
    most: int
    run: int
    seed: int

    @property
    def group_size(self) -> int:
        """Number of tars in a group, so few that each lane has one in an epoch."""
        return max(1, min(GROUP, self.num_shards // self.most))

    @property
    def groups_in_epoch(self) -> int:
        """Number of groups, of which the last may have fewer tars."""
        return -(-self.num_shards // self.group_size)

    @property
    def number(self) -> int:
        """Number of lanes."""
        return min(self.most, self.groups_in_epoch)

    def group(self, lane: int, turn: int) -> Group:
        """Choose the group that a lane reads in its turn, from 0. Each epoch has every tar once."""
        epoch, number = divmod(turn * self.number + lane, self.groups_in_epoch)
        first = number * self.group_size
        shards = _permuted(self.num_shards, self.seed, epoch)[first : first + self.group_size]
        return Group(epoch, number, tuple(shards.tolist()))

    def first_row(self, block: int) -> int:
        """Find the first row of each tar in a block of a group."""
        return FIRST_ROWS + (block - 1) * ROWS if block else 0

    def shuffled(self, group: Group, block: int, size: int) -> NDArray[np.int64]:
        """Draw the order of the entries of a block.

        Args:
            group: The group.
            block: Number of the block.
            size: Number of its entries.
        """
        return np.random.default_rng((self.seed, group.epoch, _LANES, group.number, block)).permutation(size)

    def place(self, position: int) -> tuple[int, int]:
        """Find the lane of a position in the stream, and the position in the lane."""
        runs, offset = divmod(position, self.run)
        turn, lane = divmod(runs, self.number)
        return lane, turn * self.run + offset

    def readers(self, processes: int, workers: int, micro_batch: int, per_step: int) -> int:
        """Count the workers that read a lane, and so its tars, at most. It should be 1.

        Args:
            processes: Number of training processes.
            workers: Number of workers of each process. They take its micro-batches in turn.
            micro_batch: Samples of a micro-batch.
            per_step: micro-batches of a process in each step.
        """
        seen = np.zeros((self.number, processes, workers), dtype=bool)
        ranks, micros = np.arange(processes)[:, None], np.arange(per_step)
        for step in range(2 * self.number * workers * -(-self.run // micro_batch)):
            starts = ((step * processes + ranks) * per_step + micros) * micro_batch  # (processes, per_step)
            last_turns = (starts + micro_batch - 1) // self.run
            for ahead in range(micro_batch // self.run + 2):
                turns = np.minimum(starts // self.run + ahead, last_turns)
                seen[turns % self.number, ranks, (step * per_step + micros) % workers] = True
        return int(seen.sum((1, 2)).max())


@dataclass(frozen=True)
class StreamOrder:
    """The endless stream of sample numbers.

    A number has the position in a lane, and the lane. The seed stands for the epoch.
    """

    lanes: Lanes

    def __call__(self, start: int, stop: int) -> NDArray[np.int64]:
        """List the sample numbers at positions `start` to `stop` of the stream."""
        places = list(map(self.lanes.place, range(start, stop)))
        lanes, positions = np.array(places, dtype=np.int64).reshape(-1, 2).T
        return np.asarray(positions * self.lanes.most + lanes)

    def of_epochs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """List the samples at positions `start` to `stop` as (seed, sample number)."""
        return [(self.lanes.seed, number) for number in self(start, stop).tolist()]


@lru_cache(maxsize=4)
def _permuted(num_shards: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_shards)
