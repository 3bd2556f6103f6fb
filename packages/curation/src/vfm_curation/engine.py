"""Run tasks over shards. A task is a pure function of (job, shard) that writes files and returns a small summary.

Processes exchange only the job, a shard's number and the summary. Everything big is in files. The same tasks therefore
run in this process, in processes of this machine or on a Ray cluster with a shared file system, and write the same
files bit for bit. `vfm_curation.shard_files` lets a task skip a shard whose file is already whole.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from multiprocessing.connection import wait as wait_for_any
from typing import TypeVar

from vfm.plugin import UserError, connected_ray
from vfm_curation.runtime import CurationRuntime

J = TypeVar("J")
S = TypeVar("S")
T = TypeVar("T")
Task = Callable[[J, int], S]
Submit = Callable[[int], "Future[S]"]

MAX_LOSSES = 3  # retries of a shard whose worker was killed
SHORT = 15.0  # seconds; starting processes and loading compiled code in each takes three
NUM_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_SPAWN = multiprocessing.get_context("spawn")  # forking a process with running threads may deadlock
_KEPT: ContextVar[_Workers | None] = ContextVar("kept workers", default=None)
RAY_QUEUE = 4096  # tasks submitted to Ray at a time: enough for an autoscaling cluster to see the demand


class _Workers:
    """A pool of processes that outlives a pass over the shards. It is replaced after a worker was killed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.executor: ProcessPoolExecutor | None = None

    def running(self) -> ProcessPoolExecutor:
        """Return the pool. The first call, and the next one after `end`, start it."""
        if not self.executor:
            self.executor = ProcessPoolExecutor(self.number, mp_context=_SPAWN, initializer=_exit_with_parent)
        return self.executor

    def end(self, *, at_once: bool = False) -> None:
        """End the processes.

        Args:
            at_once: Do not wait for their tasks.
        """
        if self.executor:
            self.executor.shutdown(wait=not at_once, cancel_futures=at_once)
        self.executor = None


@contextmanager
def kept_workers(runtime: CurationRuntime) -> Iterator[None]:
    """Keep the processes, or the connection to Ray, of all `run_shards` within the `with` block.

    A process takes three seconds to start and to load compiled code, and Ray ten. A stage that passes over the shards
    several times, as balancing to a target size does for each trial of t, pays this once.
    """
    if runtime.engine == "ray":
        with connected_ray(runtime.ray_address, runtime.workers):
            yield
        return
    workers = _Workers(runtime.workers or NUM_CORES)
    token = _KEPT.set(workers)
    try:
        yield
    except BaseException:
        workers.end(at_once=True)
        raise
    finally:
        _KEPT.reset(token)
        workers.end()


def run_shards(function: Task[J, S], job: J, shards: Iterable[int], runtime: CurationRuntime) -> Iterator[S]:
    """Run a task for each shard and yield each summary as it is finished, in no fixed order.

    Args:
        function: The task, a module-level function. It is run again if its worker was killed.
        job: Settings that all tasks share. They are sent with each task, so they should be small.
        shards: Numbers of the shards.
        runtime: `engine`, `workers`, `ray_address`. `workers: 0` means all cores, but only once the remaining tasks
            would take this process more than some seconds. 1 means this process.

    Raises:
        UserError: If a task raised one, or a shard's worker was killed too often. The line names the shard.
        RuntimeError: If a task raised another error. That error is its cause, and the message names the shard.
    """
    task = partial(_run_task, function, job)
    waiting = deque(shards)
    if runtime.engine == "ray":
        yield from _run_on_ray(task, waiting, runtime)
        return
    if not runtime.workers:  # processes take seconds to start, so short work is done here
        yield from _run_while_short(task, waiting)
    if waiting and runtime.workers != 1:
        number = runtime.workers or NUM_CORES
        kept = _KEPT.get()
        if kept and kept.number == number:
            yield from _run_in_processes(task, waiting, kept)
            return
        workers = _Workers(min(number, len(waiting)))
        try:
            yield from _run_in_processes(task, waiting, workers)
        finally:
            workers.end()
    while waiting:
        yield task(waiting.popleft())


def map_in_order(function: Callable[[T], S], items: Iterable[T], workers: int) -> Iterator[S]:
    """Map a function over processes of this machine, in the order of the items.

    Items are read as needed. It is for streams whose items have no numbers, such as the articles of a dump.

    Args:
        function: A module-level function, or a method of an object that can be pickled.
        items: Items that can be pickled. At most two for each process are in flight.
        workers: Number of processes. With fewer than two, this process does the work.

    Raises:
        UserError: If a process was killed.
    """
    if workers < 2:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, mp_context=_SPAWN, initializer=_exit_with_parent) as executor:
        waiting = deque[Future[S]]()
        try:
            for item in items:
                waiting.append(executor.submit(function, item))
                # Two items a worker are on the way, so that memory does not grow with a slow consumer.
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"a worker was killed; check that the work of {workers} fits into memory") from None


def _run_while_short(task: Callable[[int], S], waiting: deque[int]) -> Iterator[S]:
    """Run tasks in this process until the remaining ones would take it longer than `SHORT`."""
    # A worker of another pool cannot start processes of its own to any gain.
    alone = NUM_CORES == 1 or multiprocessing.parent_process() is not None
    seconds = 0.0  # of the last task: the first ones compile and load
    while waiting and (alone or seconds * len(waiting) < SHORT):
        begun = time.monotonic()
        summary = task(waiting.popleft())
        seconds = time.monotonic() - begun
        yield summary


def _run_task(function: Task[J, S], job: J, shard: int) -> S:
    """Run the task and name the shard in its errors. This runs in the worker."""
    try:
        return function(job, shard)
    except UserError as error:
        raise UserError(f"shard {shard}: {error}") from error
    except OSError as error:  # from the system: not a mistake in the program
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise UserError(
                f"shard {shard}: no space left on the disk; finished shards are kept: free some space and run again"
            ) from error
        where = f": {error.filename}" if error.filename else ""
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        if reason.endswith(" written"):  # numpy's "10000 requested and 512 written", without a number
            reason = f"{reason}; check the space on the disk"
        raise UserError(f"shard {shard}: {reason}{where}") from error
    except Exception as error:
        raise RuntimeError(f"shard {shard}: {type(error).__name__}: {error}") from error


def _run_in_processes(task: Callable[[int], S], waiting: deque[int], workers: _Workers) -> Iterator[S]:
    losses: Counter[int] = Counter()
    # When a worker is killed, the pool breaks and all running shards are lost, and nothing shows which one caused it.
    # Shards lost twice are suspects and run one at a time, so that a deadly one takes no other shard with it.
    suspects: deque[int] = deque()

    def submit(shard: int) -> Future[S]:
        return workers.running().submit(task, shard)

    while waiting or suspects:
        queue, limit = (suspects, 1) if suspects else (waiting, 2 * workers.number)
        running: dict[Future[S], int] = {}
        try:
            yield from _stream(submit, queue, running, limit)
        except BrokenProcessPool:
            workers.end()
            losses.update(running.values())
            # To the front, in their old order, so that lost shards are not left to the end.
            for shard in reversed(running.values()):
                (suspects if losses[shard] > 1 else waiting).appendleft(shard)
            if max(losses.values(), default=0) > MAX_LOSSES:
                raise _killed(shard for shard, count in losses.items() if count > MAX_LOSSES) from None
        except BaseException:
            workers.end(at_once=True)
            raise


def _exit_with_parent() -> None:
    """Make this worker exit silently on Ctrl-C, and when its parent ends for any reason, including SIGKILL."""
    # The parent reports Ctrl-C, so the workers need no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent
    sentinel = parent.sentinel

    def watch() -> None:
        wait_for_any([sentinel])
        # No clean-up: a task writes under another name, so whatever it has begun is made again.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_on_ray(task: Callable[[int], S], waiting: deque[int], runtime: CurationRuntime) -> Iterator[S]:
    with connected_ray(runtime.ray_address, runtime.workers) as ray:
        # Ray itself retries a task whose worker or machine was lost.
        remote = ray.remote(num_cpus=1, max_retries=MAX_LOSSES)(_call)
        running: dict[Future[S], int] = {}
        try:
            yield from _stream(lambda shard: remote.remote(task, shard).future(), waiting, running, RAY_QUEUE)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise _killed(shard for future, shard in running.items() if future.done() and future.exception()) from error


# A module-level function, since Ray cannot take the partial that a task is.
def _call(task: Callable[[int], S], shard: int) -> S:
    return task(shard)


def _stream(submit: Submit[S], waiting: deque[int], running: dict[Future[S], int], limit: int) -> Iterator[S]:
    """Keep up to `limit` tasks running. After an error, `running` holds the shards that were not yielded."""
    while waiting or running:
        while waiting and len(running) < limit:
            future = submit(waiting[0])  # removed only once it is submitted: a broken pool must not lose it
            running[future] = waiting.popleft()
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            summary = future.result()
            del running[future]
            yield summary


def _killed(shards: Iterable[int]) -> UserError:
    names = ", ".join(str(shard) for shard in sorted(shards))
    return UserError(
        f"shard {names}: the worker was killed {MAX_LOSSES + 1} times; check that a shard fits into memory"
    )
