"""Batches for training, independent of the number of workers and processes. `eval_loader` is for evaluation."""

from __future__ import annotations

import math
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from vfm.base import UserError
from vfm.data.index.column_sampling import sample_by_column
from vfm.data.index.source import Samples
from vfm.data.loading.batch import Batch, Inputs, Make
from vfm.data.loading.batch_make import MEMORY_BYTES, ContentMemory
from vfm.data.loading.plan import Plan
from vfm.data.loading.reader import Reader, TrainingReader
from vfm.data.reading.shard_cache import CacheSettings, cache_of
from vfm.data.samples.order import Order
from vfm.interfaces import Training

T = TypeVar("T")
READ_AHEAD = 2  # micro-batches
STUCK = 1800.0  # seconds without a batch from the workers until reading has failed


@dataclass(frozen=True)
class TrainingData(Generic[Inputs]):
    """Batches for each optimizer step, in the order of the source.

    The content of a step depends only on its number. An unusable sample is listed in `Batch.bad`, and replaced by
    another sample that its number determines.

    Attributes:
        source: The samples.
        make: Makes the task's inputs from each sample.
        global_batch_size: Samples per step, over all processes.
        shuffle_shards: Number of shards whose samples are shuffled together.
        workers: Processes that read and decode. 0: a thread of this process.
        max_bad_fraction: Tolerated fraction of bad samples. Training stops at once after a series of bad samples whose
            probability at this fraction is below 1e-9. The training loop checks the fraction over the whole run.
        cache: Folder and size of local copies of remote shards. None: no copies.
        repeats: Whether a step may have a sample several times, each with other random draws.
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

        Args:
            config: Settings of the training.
            source: The samples.
            make: Makes the task's inputs from each sample.

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
        """Yield the steps of a training run, each as the list of this rank's micro-batches.

        A rank takes a contiguous part of the global batch, and a micro-batch takes a contiguous part of these samples.

        Args:
            start_step: First step.
            num_steps: Step after the last one.
            rank: Number of this process.
            world_size: Number of processes.
            micro_batch_size: Samples of a micro-batch. Default: all samples of the rank.

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
        for batch in self._read(self._reader(), plan):
            pending.append(batch)
            if len(pending) == per_step:
                yield pending
                pending = []

    def _reader(self) -> Reader[Inputs]:
        # Contents of a source whose samples differ between epochs cannot be kept.
        fixed = getattr(self.source, "same_in_epochs", False)
        memory = ContentMemory(len(self.source), MEMORY_BYTES // max(1, self.workers)) if fixed else None
        return TrainingReader(
            self.source, self.make, self.cache, memory, seed=self.seed, max_bad_fraction=self.max_bad_fraction
        )

    def _read(self, reader: Reader[Inputs], plan: Iterable[Any]) -> Iterator[Batch[Inputs]]:
        return read_batches(reader, plan, self.workers)


def read_batches(
    reader: Reader[Inputs], plan: Iterable[Any], workers: int, *, ahead: int = READ_AHEAD, start: str | None = "spawn"
) -> Iterator[Batch[Inputs]]:
    """Yield the planned batches in order, read by this process or by workers.

    Args:
        reader: Reads a batch.
        plan: Arguments of `reader.read`, one after another.
        workers: Number of processes that read. 0: a thread of this process.
        ahead: Number of batches that the thread reads ahead. 0: no thread.
        start: How workers are started. None: the default of the platform.

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
    """Make a worker continue until the training process has saved a checkpoint.

    Schedulers signal all processes of a job. A second SIGTERM ends the worker. torch sends it to workers that are left
    when its process ends.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, lambda *_: os._exit(0)))


def prefetch(items: Iterable[T], num_ahead: int, thread_name: str) -> Iterator[T]:
    """Yield items that a thread computes while the caller uses the previous ones.

    This saves time because decoding and torch both release Python's lock.

    Args:
        items: The items. None of them may be None.
        num_ahead: Number of items in advance.
        thread_name: Name of the thread.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix=thread_name) as thread:
        pending = deque(thread.submit(next, remaining, None) for _ in range(num_ahead))
        while (item := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, remaining, None))
            yield item
