"""Reading shards for an index: what one shard has, as a pure function, in several processes and threads.

The results come in the order of the shards. A process reads one local shard at a time, and many remote ones, since
these are mostly waited for.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from vfm.base import UserError
from vfm.data.indexing.repeated_keys import KeySample, first_keys, own_keys
from vfm.data.indexing.stages import Verify
from vfm.data.samples.images import open_image
from vfm.data.samples.sample import BadSample
from vfm.data.samples.shards import Found, Opening, Shard, ShardReader, UnreadShard, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.storage import files
from vfm.storage.remote import RemoteError

S = TypeVar("S")
T = TypeVar("T")

Problem = tuple[int, str, str]
"""Row (-1: a sample that is no row), reason and address of a bad sample."""

READ_TOGETHER = 256  # samples of a remote shard that are read with few requests
THREADS = 48  # remote shards that a process reads at a time
REMOTE_TOGETHER = 2 * THREADS  # remote shards that are sent to a process at once


@dataclass(frozen=True)
class Examined:
    """What the index needs to know about a shard; `offsets` is None if a tar was not scanned, or the shard is none."""

    shard: Shard
    bad: list[Problem]
    keys: KeySample
    offsets: bytes | None


@dataclass(frozen=True)
class Examination:
    """Reads one shard: its offsets, and with `verify` every sample, of its image only the header.

    A shard with a known count is read only if `verify` is `all`, and none further than `num_samples` need.
    """

    spec: DatasetSpec
    verify: Verify
    num_samples: int | None = None

    def __call__(self, found: Found) -> Examined:
        """Return what a shard has.

        Raises:
            UserError: the shard is missing or cannot be read, or has another format.
        """
        try:
            shard, counted = found.reader.find(found.path) if isinstance(found, UnreadShard) else found
            return self._counted(shard) if counted and self.verify != "all" else self._read(shard)
        except RemoteError as error:
            raise UserError(str(error)) from None

    def _counted(self, shard: Shard) -> Examined:
        return Examined(shard, [], KeySample.of(first_keys(shard, self.spec), all_known=False), None)

    def _read(self, shard: Shard) -> Examined:
        form = shard_format(shard.format)
        offsets = form.scan(shard, self.spec)
        reader = form.open(shard, self.spec, Opening(offsets=[] if offsets is None else [offsets]))
        shard = replace(shard, num_samples=max(len(reader), shard.num_samples))
        bad = list(self._verify(reader, shard)) if self.verify else _lost(reader)
        return Examined(shard, bad, KeySample.of(own_keys(reader), all_known=True), offsets)

    def _verify(self, reader: ShardReader, shard: Shard) -> Iterator[Problem]:
        """Read every sample of a shard, of its image only the header, and yield the bad ones and the lost ones."""
        cut_off, num_good = False, 0
        rows = np.arange(shard.num_samples)  # more than the reader has if a tar is shorter than its known count
        if not self.spec.images:  # captions are read by whole columns, and only the rows without any one by one
            rows = np.setdiff1d(rows, reader.texts(rows, lambda reason, where: None)["row"])
        for row in rows.tolist():
            if row % READ_TOGETHER == 0:
                reader.read_ahead(range(row, min(row + READ_TOGETHER, shard.num_samples)))
            try:
                sample = reader.read(row)
                if self.spec.images:
                    open_image(sample.image, reader.where(row))
                num_good += 1
            except BadSample as bad:
                cut_off |= bad.reason == "truncated_shard"
                yield row, bad.reason, bad.where
            if self.num_samples and num_good > self.num_samples:  # one more, so that the index ends within this shard
                return
        yield from _lost(reader)
        # A tar that ends between two samples has no bad row; row -1 represents the unknown number of lost samples.
        if not reader.complete and not cut_off:
            yield -1, "truncated_shard", shard.path


def examine_all(examine: Examination, shards: Iterable[Found], workers: int) -> Generator[Examined, None, None]:
    """Examine shards, and yield the results in their order.

    Args:
        examine: what to read of each.
        shards: the shards.
        workers: processes; with fewer than two, this one.
    """
    shards = iter(shards)
    first = next(shards, None)
    if first is None:
        return
    remote = files.is_remote(first.path if isinstance(first, UnreadShard) else first[0].path)
    shards = chain([first], shards)  # an iterator still, from which both loops below take
    if workers < 2:
        yield from _in_threads(examine, shards) if remote else map(examine, shards)
        return
    tasks = iter(lambda: tuple(islice(shards, REMOTE_TOGETHER if remote else 1)), ())
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as processes:
        for found in _in_order(processes, _Together(examine), tasks, 2 * workers):
            yield from found


@dataclass(frozen=True)
class _Together:
    """Examines some shards in a process."""

    examine: Examination

    def __call__(self, shards: tuple[Found, ...]) -> list[Examined]:
        return list(_in_threads(self.examine, shards) if len(shards) > 1 else map(self.examine, shards))


def _in_threads(examine: Examination, shards: Iterable[Found]) -> Iterator[Examined]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="examine") as threads:
        yield from _in_order(threads, examine, shards, 2 * THREADS)


def _in_order(executor: Executor, function: Callable[[S], T], items: Iterable[S], num_ahead: int) -> Iterator[T]:
    """Yield the results in the order of the items, of which at most `num_ahead` are taken before their turn."""
    coming = deque[Future[T]]()
    try:
        for item in items:
            coming.append(executor.submit(function, item))
            if len(coming) > num_ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()


def _lost(reader: ShardReader) -> list[Problem]:
    """Return the samples of a shard that are no rows of it."""
    return [(-1, reason, where) for reason, where in reader.lost]
