"""Batches for a training loop, the same ones whatever the number of workers and processes; `eval_loader` has others."""

from __future__ import annotations

import hashlib
import math
import struct
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vfm.config import UserError
from vfm.data.ahead import read_ahead
from vfm.data.mixture import Mixture
from vfm.data.order import Order
from vfm.data.sample import BadSample, Sample
from vfm.data.source import Source
from vfm.interfaces import Training

Batch = dict[str, Any]
"""Stacked tensors by name; `keys`, one a sample; `bad`, the (reason, where) of each sample that was passed over."""

MAX_TRIES = 1000
READ_AHEAD = 2  # micro-batches
READ_TOGETHER = 64  # samples: the code that reads is then in the processor's cache, out of which decoding drives it


class SampleSeed(int):
    """The seed of what is random about a sample in a step; it still knows both, for what is looked up, not drawn."""

    step: int
    index: int


Make = Callable[[Sample, SampleSeed], dict[str, Tensor]]
"""What a task takes of a sample: tensors, random parts drawn from the seed. Raises BadSample; picklable for workers."""


def sample_seed(seed: int, step: int, index: int) -> SampleSeed:
    """The seed of what is random about a sample in a step: 63 bits, the same in every process."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, step, index), digest_size=8).digest()
    drawn = SampleSeed(int.from_bytes(digest, "little") >> 1)
    drawn.step, drawn.index = step, index
    return drawn


@dataclass(frozen=True)
class TrainingData:
    """Optimiser steps of samples in their source's order. A step's batch depends on its number alone.

    A sample that cannot be used is replaced by one that its number leads to, and told in the batch's `bad`.

    source: where samples come from.
    make: what a task takes of each.
    global_batch_size: samples a step, over all processes.
    shuffle_shards: shards whose samples are shuffled together.
    workers: processes that read and decode; 0 does it in this one.
    max_bad_fraction: the share of bad samples that is put up with. So many bad ones in a row that this share makes it
        next to impossible (1 in 10^9) stop the run; counting them over the run is the training loop's.
    """

    source: Source | Mixture
    make: Make
    seed: int = field(default=0, kw_only=True)
    global_batch_size: int = field(kw_only=True)
    shuffle_shards: int = field(default=1000, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    max_bad_fraction: float = field(default=0.05, kw_only=True)

    @classmethod
    def of(cls, plan: Training, source: Source | Mixture, make: Make) -> TrainingData:
        """The data of a training as its plan wants it read."""
        return cls(
            source,
            make,
            seed=plan.seed,
            global_batch_size=plan.global_batch_size,
            shuffle_shards=plan.shuffle_shards,
            workers=plan.runtime.workers,
            max_bad_fraction=plan.max_bad_fraction,
        )

    def __post_init__(self) -> None:
        if not len(self.source):
            raise UserError(f"{self.source.directory}: the data set has no samples to train on")

    def order(self) -> Order:
        """The stream of samples that the steps take."""
        return self.source.order(seed=self.seed, shuffle_shards=self.shuffle_shards)

    def steps(
        self,
        start_step: int,
        num_steps: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
    ) -> Iterator[list[Batch]]:
        """The steps `start_step` to `num_steps - 1`, each as the list of this rank's micro-batches.

        Ranks take contiguous parts of the global batch, and micro-batches contiguous parts of those.

        Raises:
            UserError: the batch does not divide, or too many samples in a row cannot be used.
        """
        share, rest = divmod(self.global_batch_size, world_size)
        if rest:
            raise UserError(f"global_batch_size {self.global_batch_size} does not divide by {world_size} processes")
        micro = min(micro_batch_size or share, share)
        per_step = math.ceil(share / micro)
        plan = _Plan(self, range(start_step, num_steps), rank * share, share, micro)
        pending: list[Batch] = []
        for batch in read_batches(_TrainingReader(self), plan, self.workers):
            pending.append(batch)
            if len(pending) == per_step:
                yield pending
                pending = []


Planned = tuple[int, list[tuple[int, int]]]


@dataclass(frozen=True)
class _Plan:
    """What is to be read, one micro-batch after another: the step, and (epoch, sample number) of each sample. Lazy."""

    data: TrainingData
    steps: range
    first: int  # this rank's place in the global batch
    share: int
    micro: int

    def __iter__(self) -> Iterator[Planned]:
        order = self.data.order()
        for step in self.steps:
            start = step * self.data.global_batch_size + self.first
            for place in range(start, start + self.share, self.micro):
                yield step, order.of_epochs(place, min(place + self.micro, start + self.share))


class Reader(Dataset[Batch]):
    """Reads a planned micro-batch, in whatever process it is asked to."""

    def __init__(self, source: Source | Mixture, make: Make) -> None:
        self.source, self.make = source, make

    def __getitem__(self, planned: Any) -> Batch:
        try:
            return self.read(planned)
        except UserError as error:  # an exception would not come whole out of a worker
            return {"failure": str(error)}

    @abstractmethod
    def read(self, planned: Any) -> Batch:
        """The batch of what is planned."""

    def samples(self, planned: Sequence[tuple[int, int]]) -> Iterator[Sample | BadSample]:
        """The sample of each (epoch, sample number), or why it cannot be read; some at a time are read together."""
        for start in range(0, len(planned), READ_TOGETHER):
            yield from [self._sample(*place) for place in planned[start : start + READ_TOGETHER]]

    def made(self, index: int, seed: SampleSeed, sample: Sample | BadSample) -> tuple[str, dict[str, Tensor]]:
        """A sample's key and tensors; raises BadSample."""
        if isinstance(sample, BadSample):
            raise sample
        try:
            return sample.key, self.make(sample, seed)
        except BadSample as bad:
            raise BadSample(bad.reason, self.source.where(index)) from None

    def _sample(self, epoch: int, index: int) -> Sample | BadSample:
        try:
            return self.source.sample(index, epoch)
        except BadSample as bad:
            return bad


class _TrainingReader(Reader):
    """Replaces what cannot be used."""

    def __init__(self, data: TrainingData) -> None:
        super().__init__(data.source, data.make)
        self.seed, self.tries = data.seed, _tries(data.max_bad_fraction)

    def read(self, planned: Planned) -> Batch:
        step, samples = planned
        bad: list[tuple[str, str]] = []
        read = zip(samples, self.samples(samples), strict=True)
        return stack([self._replaced(step, *place, sample, bad) for place, sample in read], bad)

    def _replaced(
        self, step: int, epoch: int, index: int, sample: Sample | BadSample, bad: list[tuple[str, str]]
    ) -> tuple[str, dict[str, Tensor]]:
        for attempt in range(self.tries + 1):
            if attempt:
                index = self.source.another(epoch, index, sample_seed(self.seed, -attempt, index))
                sample = self._sample(epoch, index)
            try:
                return self.made(index, sample_seed(self.seed, step, index), sample)
            except BadSample as error:
                bad.append((error.reason, error.where))
        reason, where = bad[-1]
        raise UserError(f"{where}: {reason}; so are the {self.tries} samples tried before it in the same place")


def _tries(max_bad_fraction: float) -> int:
    """Replacements to try in a row, so that a share of `max_bad_fraction` uses them up with a chance below 10^-9."""
    if max_bad_fraction <= 0:
        return 0
    return MAX_TRIES if max_bad_fraction >= 0.97 else math.ceil(math.log(1e-9) / math.log(max_bad_fraction))


def stack(made: Sequence[tuple[str, dict[str, Tensor]]], bad: list[tuple[str, str]]) -> Batch:
    """The batch of samples, each with its key, and of what was passed over."""
    rows = [tensors for _, tensors in made]
    batch: Batch = {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else {})}
    return batch | {"keys": [key for key, _ in made], "bad": bad}


def read_batches(reader: Dataset[Batch], plan: Iterable[Any], workers: int) -> Iterator[Batch]:
    """The planned batches in their order, from this process or from workers.

    Raises:
        UserError: what a reader told.
    """
    loader: DataLoader[Batch] = DataLoader(
        reader,
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=workers > 0 and torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader would draw from, and so shift, the global generator
    )
    for batch in loader if workers else read_ahead(loader, READ_AHEAD, "loader"):
        if "failure" in batch:
            raise UserError(batch["failure"])
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch
