"""Batches for training, independent of the number of workers and processes. `eval_loader` is for evaluation."""

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
from vfm.data.index.column_sampling import sample_by_column
from vfm.data.index.source import ReadsAhead, Samples
from vfm.data.loading.batch import Batch, Inputs, Make, SampleDraw, stack
from vfm.data.loading.plan import Plan, Planned
from vfm.data.reading.shard_cache import CacheSettings, ShardCache, cache_of
from vfm.data.samples.order import Order
from vfm.data.samples.sample import BadSample, Sample
from vfm.interfaces import Training

T = TypeVar("T")
MAX_TRIES = 1000
READ_AHEAD = 2  # micro-batches
STUCK = 1800.0  # seconds without a batch from the workers until reading has failed
WAIT_TOGETHER = 256  # samples of remote shards that are requested at once: 25 MB for images of 100 kB
READ_TOGETHER = 64  # samples read before decoding, so that the code for reading stays in the processor's cache


@dataclass(frozen=True)
class TrainingData(Generic[Inputs]):
    """Batches for each optimizer step, in the order of the source. The content of a step depends only on its number.

    An unusable sample is listed in `Batch.bad`, and replaced by a sample that its number determines.

    Attributes:
        source: the samples.
        make: makes the task's inputs from each sample.
        global_batch_size: samples per step, over all processes.
        shuffle_shards: number of shards whose samples are shuffled together.
        workers: processes that read and decode. 0: a thread of this process.
        max_bad_fraction: tolerated fraction of bad samples. Training stops at once after a series of bad samples whose
            probability at this fraction is below 1e-9. The training loop checks the fraction over the whole run.
        cache: folder and size of local copies of remote shards. None: no copies.
        repeats: whether a step may have a sample several times, each with other random draws.
    """

    source: Samples
    make: Make[Inputs]
    seed: int = field(default=0, kw_only=True)
    global_batch_size: int = field(kw_only=True)
    shuffle_shards: int = field(default=1000, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    max_bad_fraction: float = field(default=0.05, kw_only=True)
    cache: CacheSettings | None = field(default=None, kw_only=True)
    repeats: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, config: Training, source: Samples, make: Make[Inputs]) -> TrainingData[Inputs]:
        """Create the data from the configuration of a training run.

        Raises:
            UserError: If the samples do not have the column of the sampler.
        """
        by_column = config.loading.by_column
        if by_column:
            source = sample_by_column(source, by_column, config.seed)
        return cls(
            source,
            make,
            seed=config.seed,
            global_batch_size=config.global_batch_size,
            shuffle_shards=config.loading.shuffle_shards,
            workers=config.runtime.num_workers,
            max_bad_fraction=config.loading.max_bad_fraction,
            cache=cache_of(config.loading),
            repeats=by_column is not None,
        )

    def __post_init__(self) -> None:
        if not len(self.source):
            raise UserError(f"{self.source.directory}: the dataset has no samples to train on")

    def order(self) -> Order:
        """Create the order in which the steps take the samples."""
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

        A rank takes a contiguous part of the global batch, and a micro-batch takes a contiguous part of these samples.

        Raises:
            UserError: If the batch size is not divisible, or too many samples in a row cannot be used.
        """
        share, rest = divmod(self.global_batch_size, world_size)
        if rest:
            raise UserError(
                f"global_batch_size must be divisible by the {world_size} processes, got {self.global_batch_size}"
            )
        micro = min(micro_batch_size or share, share)
        per_step = math.ceil(share / micro)
        plan = Plan(self, range(start_step, num_steps), rank * share, share, micro)
        pending: list[Batch[Inputs]] = []
        for batch in self._read(_TrainingReader(self), plan):
            pending.append(batch)
            if len(pending) == per_step:
                yield pending
                pending = []

    def _read(self, reader: Reader[Inputs], plan: Iterable[Any]) -> Iterator[Batch[Inputs]]:
        return read_batches(reader, plan, self.workers)


class Reader(Dataset[Batch[Inputs] | UserError], Generic[Inputs]):
    """Reads planned micro-batches, in this process or in a worker."""

    def __init__(self, source: Samples, make: Make[Inputs], cache: CacheSettings | None = None) -> None:
        self.source, self.make = source, make
        self.cache = ShardCache(cache) if cache else None

    def __getitem__(self, planned: Any) -> Batch[Inputs] | UserError:
        try:
            return self.read(planned)
        except UserError as error:  # returned, because torch rewrites the messages of errors raised in workers
            return error

    @abstractmethod
    def read(self, planned: Any) -> Batch[Inputs]:
        """Read the planned batch."""

    def samples(self, planned: Sequence[tuple[int, int]]) -> Iterator[Sample | BadSample]:
        """Yield the sample of each (epoch, sample number), or the reason why it cannot be read."""
        for start in range(0, len(planned), READ_TOGETHER):
            if start % WAIT_TOGETHER == 0 and isinstance(self.source, ReadsAhead):
                self.source.read_ahead([index for _, index in planned[start : start + WAIT_TOGETHER]], self.cache)
            # A list and not a generator, so that these samples are read before the caller decodes the first.
            yield from [self._sample(epoch, index) for epoch, index in planned[start : start + READ_TOGETHER]]

    def make_inputs(self, draw: SampleDraw, sample: Sample | BadSample) -> tuple[str, Inputs]:
        """Make the inputs from a sample, and return its key and inputs.

        Raises:
            BadSample: the sample cannot be read or used.
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
    """Replaces unusable samples."""

    def __init__(self, data: TrainingData[Inputs]) -> None:
        super().__init__(data.source, data.make, data.cache)
        self.seed, self.tries = data.seed, _tries(data.max_bad_fraction)

    def read(self, planned: Planned) -> Batch[Inputs]:
        bad: list[tuple[str, str]] = []
        inputs = []
        for use, repeat, sample in zip(planned.samples, planned.repeats, self.samples(planned.samples), strict=True):
            inputs.append(self._replaced(planned.step, use, repeat, sample, bad))
        return stack(inputs, bad)

    def _replaced(
        self, step: int, use: tuple[int, int], repeat: int, sample: Sample | BadSample, bad: list[tuple[str, str]]
    ) -> tuple[str, Inputs]:
        epoch, index = use
        for attempt in range(self.tries + 1):
            if attempt:
                # Negative steps, so that the choice of a replacement is independent of the draws of all steps.
                index = self.source.another(epoch, index, SampleDraw.of(self.seed, -attempt, index).seed)
                sample = self._sample(epoch, index)
            try:
                return self.make_inputs(SampleDraw.of(self.seed, step, index, repeat), sample)
            except BadSample as error:
                bad.append((error.reason, error.where))
        reason, where = bad[-1]
        raise UserError(f"{where}: {reason}; the {self.tries} samples tried in its place cannot be used either")


def _tries(max_bad_fraction: float) -> int:
    """Compute the number of replacements to try, which bad samples at `max_bad_fraction` rarely (1e-9) use up."""
    if max_bad_fraction <= 0:
        return 0
    if max_bad_fraction >= 0.97:
        return MAX_TRIES
    return math.ceil(math.log(1e-9) / math.log(max_bad_fraction))


def read_batches(
    reader: Reader[Inputs], plan: Iterable[Any], workers: int, *, ahead: int = READ_AHEAD, start: str | None = "spawn"
) -> Iterator[Batch[Inputs]]:
    """Yield the planned batches in order, read by this process or by workers.

    Args:
        reader: reads a batch.
        plan: arguments of `reader.read`, one after another.
        workers: number of processes that read. 0: a thread of this process.
        ahead: number of batches that the thread reads ahead. 0: no thread.
        start: how workers are started. None: the default of the platform.

    Raises:
        UserError: From the reader, or if the workers are stuck.
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
        timeout=STUCK if workers else 0,
        generator=torch.Generator(),  # otherwise the loader would draw from the global generator, and change its state
    )
    in_thread = ahead > 0 and workers == 0
    for batch in prefetch(loader, ahead, "loader") if in_thread else _in_time(loader):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _in_time(loader: DataLoader[T]) -> Iterator[T]:
    """Yield the batches of workers.

    Raises:
        UserError: If a batch does not come in time.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if "timed out" not in str(error):
            raise
        raise UserError(
            f"the workers have read no batch for {loader.timeout:.0f} s: a file or its server does not answer"
        ) from error


def _unchanged(batch: Any) -> Any:
    return batch


def _outlast_signals(worker: int) -> None:
    """Let a worker continue until the training process has saved a checkpoint.

    Schedulers signal all processes of a job. A second SIGTERM ends the worker, which torch sends to workers that are
    left when its process ends.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, lambda *_: os._exit(0)))


def prefetch(items: Iterable[T], num_ahead: int, thread_name: str) -> Iterator[T]:
    """Yield the items (none of them None), computed in a thread while the caller uses the previous items.

    This saves time because decoding and torch both release Python's lock.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix=thread_name) as thread:
        pending = deque(thread.submit(next, remaining, None) for _ in range(num_ahead))
        while (item := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, remaining, None))
            yield item
