"""Run tasks over shards. A task is a pure function of (job, shard) that writes files and returns a small summary.

Processes exchange only the job, a shard's number and the summary. Everything big is in files. The same tasks therefore
run in this process, in processes of this machine or on a Ray cluster with a shared file system, and write the same
files bit for bit. `vfm_curation.shard_files` lets a task skip a shard whose file is already whole.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_any
from typing import Any, TypeVar

from vfm.plugin import UserError
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
CONNECT_SECONDS = 10.0
RAY_QUEUE = 4096  # tasks submitted to Ray at a time: enough for an autoscaling cluster to see the demand


def run_shards(function: Task[J, S], job: J, shards: Iterable[int], runtime: CurationRuntime) -> Iterator[S]:
    """Run a task for each shard and yield each summary as it is finished, in no fixed order.

    Args:
        function: the task, a module-level function. It is run again if its worker was killed.
        job: settings that all tasks share. They are sent with each task, so they should be small.
        shards: numbers of the shards.
        runtime: `engine`, `workers`, `ray_address`. `workers: 0` means all cores, but only once the remaining tasks
            would take this process more than some seconds. 1 means this process.

    Raises:
        UserError: If a task raised one, or a shard's worker was killed too often. The line names the shard.
        RuntimeError: If a task raised another error. That error is its cause, and the message names the shard.
    """
    task, waiting = functools.partial(_run_task, function, job), deque(shards)
    if runtime.engine == "ray":
        yield from _run_on_ray(task, waiting, runtime)
        return
    if not runtime.workers:  # processes take seconds to start, so short work is done here
        yield from _run_while_short(task, waiting)
    if waiting and runtime.workers != 1:
        yield from _run_in_processes(task, waiting, min(runtime.workers or NUM_CORES, len(waiting)))
    while waiting:
        yield task(waiting.popleft())


def map_in_order(function: Callable[[T], S], items: Iterable[T], workers: int) -> Iterator[S]:
    """Map a function over processes of this machine, in the order of the items, which are read as needed.

    It is for streams whose items have no numbers, such as the articles of a dump.

    Args:
        function: a module-level function, or a method of an object that can be pickled.
        items: items that can be pickled. At most two for each process are in flight.
        workers: number of processes. With fewer than two, this process does the work.

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
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"a worker was killed; check that the work of {workers} fits into memory") from None


def _run_while_short(task: Callable[[int], S], waiting: deque[int]) -> Iterator[S]:
    """Run tasks in this process until the remaining ones would take it longer than `SHORT`."""
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
    except OSError as error:  # from the system, such as a full disk: not a mistake in the program
        where = f": {error.filename}" if error.filename else ""
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__  # numpy's have no number
        raise UserError(f"shard {shard}: {reason}{where}") from error
    except Exception as error:
        raise RuntimeError(f"shard {shard}: {type(error).__name__}: {error}") from error


def _run_in_processes(task: Callable[[int], S], waiting: deque[int], num_workers: int) -> Iterator[S]:
    losses: Counter[int] = Counter()
    # When a worker is killed, the pool breaks and all running shards are lost, and nothing shows which one caused it.
    # Shards lost twice are suspects and run one at a time, so that a deadly one takes no other shard with it.
    suspects: deque[int] = deque()
    while waiting or suspects:
        queue, limit = (suspects, 1) if suspects else (waiting, 2 * num_workers)
        running: dict[Future[S], int] = {}
        with ProcessPoolExecutor(num_workers, mp_context=_SPAWN, initializer=_exit_with_parent) as executor:
            try:
                yield from _stream(lambda shard: executor.submit(task, shard), queue, running, limit)
            except BrokenProcessPool:
                losses.update(running.values())
                for shard in reversed(running.values()):
                    (suspects if losses[shard] > 1 else waiting).appendleft(shard)
                if max(losses.values(), default=0) > MAX_LOSSES:
                    raise _killed(shard for shard, count in losses.items() if count > MAX_LOSSES) from None
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
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
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_on_ray(task: Callable[[int], S], waiting: deque[int], runtime: CurationRuntime) -> Iterator[S]:
    with connected_ray(runtime) as ray:
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


@contextmanager
def connected_ray(runtime: CurationRuntime) -> Iterator[Any]:
    """Yield the module ray, connected as `runtime` requires. An existing connection is used and left open.

    Raises:
        UserError: If there is no cluster at `ray_address`.
    """
    # Under `uv run` Ray would send the working folder to each worker and resolve its packages again.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # the extra `ray`; reads the variables above when it is imported

    if ray.is_initialized():
        yield ray
        return
    new_cluster = {"address": "local", "num_cpus": runtime.workers or None, "include_dashboard": False}
    where = {"address": runtime.ray_address} if runtime.ray_address else new_cluster
    try:
        _check_listening(_address_of(runtime))
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        why = error.strerror or error
        raise UserError(f"no Ray cluster found at ray_address {runtime.ray_address}: {why}") from None
    except Exception as error:  # of many types, some of them plain: it depends on what the machine lacks
        raise UserError(f"Ray did not start: {type(error).__name__}: {' '.join(str(error).split())}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _address_of(runtime: CurationRuntime) -> str:
    """Find the address that Ray will try. `auto` means RAY_ADDRESS if that is set."""
    named = runtime.ray_address or ""
    return os.environ.get("RAY_ADDRESS", named) if named == "auto" else named


def _check_listening(address: str) -> None:
    """Connect to HOST:PORT, also with `ray://`. Ray itself tries for minutes and then ends the process.

    Raises:
        OSError: If nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


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
