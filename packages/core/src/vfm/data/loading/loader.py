"""Batches for training. They do not depend on the number of workers and processes; `eval_loader` is for evaluation."""

from __future__ import annotations

import math
import os
import signal
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vfm.base import UserError
from vfm.data.index.source import ReadsAhead, Samples
from vfm.data.loading.batch import Batch, Inputs, Make, SampleDraw, stack
from vfm.data.reading.shard_cache import CacheSettings, ShardCache, cache_of
from vfm.data.samples.order import Order
from vfm.data.samples.sample import BadSample, Sample
from vfm.interfaces import Training

T = TypeVar("T")
MAX_TRIES = 1000
READ_AHEAD = 2  # micro-batches
WAIT_TOGETHER = 256  # samples of remote shards that are requested at once: 25 MB of pictures of 100 kB
READ_TOGETHER = 64  # samples: the code that reads then stays in the processor's cache, which decoding would replace


@dataclass(frozen=True)
class TrainingData(Generic[Inputs]):
    """Optimizer steps of samples in their source's order. The content of a step depends only on its number.

    A sample that cannot be used is replaced by another one, which its number determines, and listed in `Batch.bad`.

    source: the samples.
    make: makes the task's inputs of each sample.
    global_batch_size: samples per step, over all processes.
    shuffle_shards: number of shards whose samples are shuffled together.
    workers: processes that read and decode; 0: a thread of this process.
    max_bad_fraction: tolerated fraction of bad samples. A run of bad samples that has a probability below 1e-9 at this
        fraction stops the training at once; the training loop counts them over the whole run.
    cache: folder and size of local copies of remote shards; None: no copies.
    """

    source: Samples
    make: Make[Inputs]
    seed: int = field(default=0, kw_only=True)
    global_batch_size: int = field(kw_only=True)
    shuffle_shards: int = field(default=1000, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    max_bad_fraction: float = field(default=0.05, kw_only=True)
    cache: CacheSettings | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, config: Training, source: Samples, make: Make[Inputs]) -> TrainingData[Inputs]:
        """Return the data of a training as its configuration describes it."""
        return cls(
            source,
            make,
            seed=config.seed,
            global_batch_size=config.global_batch_size,
            shuffle_shards=config.loading.shuffle_shards,
            workers=config.runtime.num_workers,
            max_bad_fraction=config.loading.max_bad_fraction,
            cache=cache_of(config.loading),
        )

    def __post_init__(self) -> None:
        if not len(self.source):
            raise UserError(f"{self.source.directory}: the dataset has no samples to train on")

    def order(self) -> Order:
        """Return the order in which the steps take the samples."""
        return self.source.order(seed=self.seed, shuffle_shards=self.shuffle_shards)

    def steps(
        self,
        start_step: int,
        num_steps: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
    ) -> Iterator[list[Batch[Inputs]]]:
        """Yield the steps `start_step` to `num_steps - 1`, each as the list of this rank's micro-batches.

        Ranks take contiguous parts of the global batch, and micro-batches contiguous parts of those.

        Raises:
            UserError: the batch size is not divisible, or too many samples in a row cannot be used.
        """
        share, rest = divmod(self.global_batch_size, world_size)
        if rest:
            raise UserError(
                f"global_batch_size must be divisible by the {world_size} processes, got {self.global_batch_size}"
            )
        micro = min(micro_batch_size or share, share)
        per_step = math.ceil(share / micro)
        plan = _Plan(self, range(start_step, num_steps), rank * share, share, micro)
        pending: list[Batch[Inputs]] = []
        for batch in self._read(_TrainingReader(self), plan):
            pending.append(batch)
            if len(pending) == per_step:
                yield pending
                pending = []

    def _read(self, reader: Reader[Inputs], plan: Iterable[Any]) -> Iterator[Batch[Inputs]]:
        return read_batches(reader, plan, self.workers)


Planned = tuple[int, list[tuple[int, int]]]


@dataclass(frozen=True)
class _Plan:
    """The micro-batches to read, one after another: the step, and (epoch, sample number) of each sample. Lazy."""

    data: TrainingData[Any]
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


class Reader(Dataset[Batch[Inputs] | UserError], Generic[Inputs]):
    """Reads a planned micro-batch, in this process or in a worker."""

    def __init__(self, source: Samples, make: Make[Inputs], cache: CacheSettings | None = None) -> None:
        self.source, self.make = source, make
        self.cache = ShardCache(cache) if cache else None

    def __getitem__(self, planned: Any) -> Batch[Inputs] | UserError:
        try:
            return self.read(planned)
        except UserError as error:  # returned, since torch rewrites the message of what a worker raises
            return error

    @abstractmethod
    def read(self, planned: Any) -> Batch[Inputs]:
        """Return the planned batch."""

    def samples(self, planned: Sequence[tuple[int, int]]) -> Iterator[Sample | BadSample]:
        """Yield the sample of each (epoch, sample number), or why it cannot be read; some are read together."""
        for start in range(0, len(planned), READ_TOGETHER):
            if start % WAIT_TOGETHER == 0 and isinstance(self.source, ReadsAhead):
                self.source.read_ahead([index for _, index in planned[start : start + WAIT_TOGETHER]], self.cache)
            yield from [self._sample(*place) for place in planned[start : start + READ_TOGETHER]]

    def made(self, draw: SampleDraw, sample: Sample | BadSample) -> tuple[str, Inputs]:
        """Return a sample's key and inputs.

        Raises:
            BadSample: it cannot be read or used.
        """
        if isinstance(sample, BadSample):
            raise sample
        try:
            return sample.key, self.make(sample, draw)
        except BadSample as bad:
            raise BadSample(bad.reason, self.source.where(draw.index)) from None

    def _sample(self, epoch: int, index: int) -> Sample | BadSample:
        try:
            return self.source.sample(index, epoch)
        except BadSample as bad:
            return bad


class _TrainingReader(Reader[Inputs]):
    """Replaces samples that cannot be used."""

    def __init__(self, data: TrainingData[Inputs]) -> None:
        super().__init__(data.source, data.make, data.cache)
        self.seed, self.tries = data.seed, _tries(data.max_bad_fraction)

    def read(self, planned: Planned) -> Batch[Inputs]:
        step, samples = planned
        bad: list[tuple[str, str]] = []
        read = zip(samples, self.samples(samples), strict=True)
        return stack([self._replaced(step, *place, sample, bad) for place, sample in read], bad)

    def _replaced(
        self, step: int, epoch: int, index: int, sample: Sample | BadSample, bad: list[tuple[str, str]]
    ) -> tuple[str, Inputs]:
        for attempt in range(self.tries + 1):
            if attempt:
                index = self.source.another(epoch, index, SampleDraw.of(self.seed, -attempt, index).seed)
                sample = self._sample(epoch, index)
            try:
                return self.made(SampleDraw.of(self.seed, step, index), sample)
            except BadSample as error:
                bad.append((error.reason, error.where))
        reason, where = bad[-1]
        raise UserError(f"{where}: {reason}; the {self.tries} samples tried in its place cannot be used either")


def _tries(max_bad_fraction: float) -> int:
    """Return how many replacements to try, so that a fraction of `max_bad_fraction` rarely (1e-9) uses them up."""
    if max_bad_fraction <= 0:
        return 0
    return MAX_TRIES if max_bad_fraction >= 0.97 else math.ceil(math.log(1e-9) / math.log(max_bad_fraction))


def read_batches(
    reader: Reader[Inputs], plan: Iterable[Any], workers: int, *, ahead: int = READ_AHEAD, start: str | None = "spawn"
) -> Iterator[Batch[Inputs]]:
    """Yield the planned batches in order, read by this process or by workers.

    Args:
        reader: reads a batch.
        plan: what it reads, one after another.
        workers: number of processes that read; 0: a thread of this one.
        ahead: batches that the thread is ahead; 0: no thread.
        start: how workers are started; None: as the platform does.

    Raises:
        UserError: from the reader.
    """
    loader: DataLoader[Batch[Inputs] | UserError] = DataLoader(
        reader,
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        collate_fn=_unchanged,
        multiprocessing_context=start if workers else None,
        worker_init_fn=_outlast_signals if workers else None,
        pin_memory=workers > 0 and torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise the loader would draw from, and so shift, the global generator
    )
    for batch in prefetch(loader, ahead, "loader") if ahead and not workers else loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _unchanged(batch: Any) -> Any:
    return batch


def _outlast_signals(worker: int) -> None:
    """Let a worker go on until the training has saved a checkpoint: schedulers signal all processes of a job.

    A second SIGTERM ends it, as torch sends to workers that are left when a process ends.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, lambda *_: os._exit(0)))


def prefetch(items: Iterable[T], num_ahead: int, thread_name: str) -> Iterator[T]:
    """Yield the same items (none of them None), computed in a thread while the caller uses the ones before.

    Decoding and torch both release Python's lock.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix=thread_name) as thread:
        coming = deque(thread.submit(next, remaining, None) for _ in range(num_ahead))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, remaining, None))
            yield item
