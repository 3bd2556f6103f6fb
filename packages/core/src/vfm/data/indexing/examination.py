"""Examine the shards of a dataset for its index, in several processes and threads.

The examination of a shard is a pure function, and the results come in the order of the shards. A process reads one
local shard at a time, but many remote shards, because most of their time is spent waiting.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from vfm.base import UserError
from vfm.data.indexing.repeated_keys import KeySample, first_keys, own_keys
from vfm.data.indexing.stages import Verify
from vfm.data.ledger.account import COUNTED, Account
from vfm.data.samples.images import decode_image, open_image
from vfm.data.samples.sample import BadSample
from vfm.data.samples.shards import Found, Opening, Shard, ShardReader, UnreadShard, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.storage import files
from vfm.storage.remote_spans import RemoteError

S = TypeVar("S")
T = TypeVar("T")

Problem = tuple[int, str, str]
"""Row (-1 for a sample that is not a row), reason and address of a bad sample."""

UNCOUNTED = (
    "without the shard, the number of bad samples is unknown, so max_bad_fraction does not apply: run again when the"
    " server gives the shard, or leave it out of `path`"
)
READ_TOGETHER = 256  # samples of a remote shard that are requested together
MAX_FILES = 1 << 20  # image files that are remembered, so that many rows may name one of them: about 100 MB
THREADS = 48  # remote shards that a process reads at a time
REMOTE_TOGETHER = 2 * THREADS  # remote shards that are sent to a process at once


@dataclass(frozen=True)
class Examined:
    """The facts about a shard for the index.

    Only a tar that was scanned has `offsets`.
    """

    shard: Shard
    bad: list[Problem]
    keys: KeySample
    offsets: bytes | None
    account: Account


@dataclass(frozen=True)
class Examination:
    """Read the offsets of a shard, and with `verify` every sample. Images are decoded if it is `decode`, else opened.

    Shards with a known count are read only if `verify` is `all` or `decode`, and no shard is read further than
    `num_samples` need.
    """

    spec: DatasetSpec
    verify: Verify
    num_samples: int | None = None
    good_files: set[str] = field(default_factory=set, compare=False, repr=False)  # examined, and named by other rows

    def __call__(self, candidate: Found) -> Examined:
        """Examine a shard.

        Raises:
            UserError: If the shard is missing or cannot be read, or has another format.
        """
        try:
            if isinstance(candidate, UnreadShard):
                shard, counted = candidate.reader.find(candidate.path)
            else:
                shard, counted = candidate
            if counted and self.verify not in ("all", "decode"):
                return self._counted(shard)
            return self._read(shard)
        except (RemoteError, UserError) as error:
            if isinstance(error, RemoteError) or isinstance(error.__cause__, RemoteError):
                raise UserError(f"{error}; {UNCOUNTED}") from None
            raise

    def _counted(self, shard: Shard) -> Examined:
        keys = KeySample.of(first_keys(shard, self.spec), all_known=False)
        return Examined(shard, [], keys, None, Account.whole(shard.path, "bytes", shard.size, COUNTED))

    def _read(self, shard: Shard) -> Examined:
        scans: list[bytes] = []
        reader = shard_format(shard.format).open(shard, self.spec, Opening(save=scans.append))
        shard = replace(shard, num_samples=max(len(reader), shard.num_samples))
        bad = list(self._verify(reader, shard)) if self.verify else _lost(reader)
        keys = KeySample.of(own_keys(reader), all_known=True)
        return Examined(shard, bad, keys, scans[0] if scans else None, reader.account())

    def _verify(self, reader: ShardReader, shard: Shard) -> Iterator[Problem]:
        """Read every sample of a shard, and yield the bad and lost samples."""
        examine = decode_image if self.verify == "decode" else open_image
        cut_off, num_good = False, 0
        rows = np.arange(shard.num_samples)  # more than the reader has if a tar is shorter than its known count
        if not self.spec.images:  # captions are read as whole columns, and rows without a caption one at a time
            rows = np.setdiff1d(rows, reader.texts(rows, lambda reason, where: None)["row"])
        for row in rows.tolist():
            if row % READ_TOGETHER == 0:
                reader.read_ahead(range(row, min(row + READ_TOGETHER, shard.num_samples)))
            try:
                file = reader.image_file(row) if self.spec.images else None
                sample = reader.read(row, with_image=file not in self.good_files)
                if self.spec.images and file not in self.good_files:
                    examine(sample.image, reader.where(row))
                    if file and len(self.good_files) < MAX_FILES:
                        self.good_files.add(file)
                num_good += 1
            except BadSample as bad:
                cut_off |= bad.reason == "truncated_shard"
                yield row, bad.reason, bad.where
            # Read one more sample than needed, so that the index ends within this shard.
            if self.num_samples and num_good > self.num_samples:
                return
        yield from _lost(reader)
        # A tar that ends between two samples has no bad row; row -1 represents the unknown number of lost samples.
        if not reader.complete and not cut_off:
            yield -1, "truncated_shard", shard.path


def examine_all(examine: Examination, shards: Iterable[Found], workers: int) -> Generator[Examined, None, None]:
    """Examine shards, and yield the results in the order of the shards.

    Args:
        examine: Examines a shard.
        shards: The shards.
        workers: Number of processes. With fewer than two, this process does the work.
    """
    shards = iter(shards)
    first = next(shards, None)
    if first is None:
        return
    first_path = first.path if isinstance(first, UnreadShard) else first[0].path
    remote = files.is_remote(first_path)
    shards = chain([first], shards)  # still an iterator, which the tasks below consume
    if workers < 2:
        yield from _in_threads(examine, shards) if remote else map(examine, shards)
        return
    shards_per_task = REMOTE_TOGETHER if remote else 1
    tasks = iter(lambda: tuple(islice(shards, shards_per_task)), ())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_set_examination, initargs=(examine,)) as pool:
        for results in _in_order(pool, _examine_together, tasks, 2 * workers):
            yield from results


_examination: list[Examination] = []  # of a worker process, so that its shards share `good_files`


def _set_examination(examine: Examination) -> None:
    _examination[:] = [examine]


def _examine_together(shards: tuple[Found, ...]) -> list[Examined]:
    """Examine several shards in a worker process."""
    (examine,) = _examination
    if len(shards) > 1:
        return list(_in_threads(examine, shards))
    return list(map(examine, shards))


def _in_threads(examine: Examination, shards: Iterable[Found]) -> Iterator[Examined]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="examine") as threads:
        yield from _in_order(threads, examine, shards, 2 * THREADS)


def _in_order(executor: Executor, function: Callable[[S], T], items: Iterable[S], num_ahead: int) -> Iterator[T]:
    """Yield the results in the order of the items. At most `num_ahead` items are taken in advance."""
    pending = deque[Future[T]]()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > num_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _lost(reader: ShardReader) -> list[Problem]:
    """List the samples of a shard that are not rows."""
    return [(-1, reason, where) for reason, where in reader.lost]
