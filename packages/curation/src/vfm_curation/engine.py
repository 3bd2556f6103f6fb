"""What runs over shards: a task is a pure function of (job, shard) that leaves whole files and returns a small summary.

Nothing but the job, a shard's number and the summary goes between processes; what is big lies in files. So the same
tasks run in this process, in processes of this machine or on a Ray cluster with one file system, and leave the same
files bit for bit. `vfm_curation.shard_files` has them redone only where no whole file is there.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_any
from typing import Any, Self, TypeVar

from vfm.config import UserError
from vfm.stage import Context, Runtime

J = TypeVar("J")
S = TypeVar("S")
T = TypeVar("T")
Task = Callable[[J, int], S]
Submit = Callable[[int], "Future[S]"]

MAX_LOSSES = 3  # times that a shard may lose its worker and is tried again
NUM_BAD_SHOWN = 20  # bad samples of a shard that are told one by one
_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with running threads may hang
RAY_QUEUE = 4096  # tasks handed to Ray at a time: enough for a cluster that grows to see that there is work


def run_shards(function: Task[J, S], job: J, shards: Iterable[int], runtime: Runtime) -> Iterator[S]:
    """Runs a task for each shard and yields each one's summary as it is finished, in no fixed order.

    Args:
        function: the task, a function of a module; it is run again where its worker was lost.
        job: what all tasks share; small, since it is sent with each.
        shards: numbers of the shards.
        runtime: `engine`, `workers`, `ray_address`; with fewer than two local workers, tasks run in this process.

    Raises:
        UserError: a task raised one, or a shard lost its worker again and again; the line names the shard.
        RuntimeError: a task failed by another error, which is its cause; it names the shard.
    """
    task, waiting = functools.partial(_run_task, function, job), deque(shards)
    if runtime.engine == "ray":
        yield from _run_on_ray(task, waiting, runtime)
    elif runtime.workers > 1:
        yield from _run_in_processes(task, waiting, runtime.workers)
    else:
        yield from map(task, waiting)


def in_order(function: Callable[[T], S], items: Iterable[T], workers: int) -> Iterator[S]:
    """`map` over processes of this machine, in the order of the items, which are taken as they are needed.

    For what comes in one stream and cannot be told by a number, as the articles of a dump.

    Args:
        function: of a module, or a method of what can be sent.
        items: sent to the processes; two for each are under way.
        workers: processes; fewer than two: this one.
    """
    if workers < 2:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, mp_context=_SPAWN, initializer=_end_with_parent) as executor:
        waiting = deque[Future[S]]()
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _run_task(function: Task[J, S], job: J, shard: int) -> S:
    """The task, whose errors name the shard. It runs where the task does."""
    try:
        return function(job, shard)
    except UserError as error:
        raise UserError(f"shard {shard}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"shard {shard}: {type(error).__name__}: {error}") from error


def _run_in_processes(task: Callable[[int], S], waiting: deque[int], num_workers: int) -> Iterator[S]:
    losses: Counter[int] = Counter()
    suspects: deque[int] = deque()  # lost twice: one at a time, so that what kills a worker takes no other shard along
    while waiting or suspects:
        now, most = (suspects, 1) if suspects else (waiting, 2 * num_workers)
        running: dict[Future[S], int] = {}
        with ProcessPoolExecutor(num_workers, mp_context=_SPAWN, initializer=_end_with_parent) as executor:
            try:
                yield from _stream(lambda shard: executor.submit(task, shard), now, running, most)
            except BrokenProcessPool:  # a worker was killed, and all that were running have fallen with it
                losses.update(running.values())
                for shard in reversed(running.values()):
                    (suspects if losses[shard] > 1 else waiting).appendleft(shard)
                if max(losses.values(), default=0) > MAX_LOSSES:
                    raise _lost(shard for shard, count in losses.items() if count > MAX_LOSSES) from None
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise


def _end_with_parent() -> None:
    """In a worker: Ctrl-C ends it without a word, and so does the end of its parent, whatever that was killed by."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent
    sentinel = parent.sentinel

    def watch() -> None:
        wait_for_any([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_on_ray(task: Callable[[int], S], waiting: deque[int], runtime: Runtime) -> Iterator[S]:
    with _ray(runtime) as ray:
        # Ray itself tries a task again whose worker or machine was lost.
        remote = ray.remote(num_cpus=1, max_retries=MAX_LOSSES)(_call)
        running: dict[Future[S], int] = {}
        try:
            yield from _stream(lambda shard: remote.remote(task, shard).future(), waiting, running, RAY_QUEUE)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise _lost(shard for future, shard in running.items() if future.done() and future.exception()) from error


def _call(task: Callable[[int], S], shard: int) -> S:
    return task(shard)


@contextmanager
def _ray(runtime: Runtime) -> Iterator[Any]:
    """Ray, connected as `runtime` says; a connection that the caller has made is used and left as it is."""
    # Under `uv run` Ray would send the working folder to each worker and resolve its packages anew.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    own = {"address": "local", "num_cpus": runtime.workers or None, "include_dashboard": False}
    where = {"address": runtime.ray_address} if runtime.ray_address else own
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at ray_address {runtime.ray_address}: {error}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _stream(submit: Submit[S], waiting: deque[int], running: dict[Future[S], int], most: int) -> Iterator[S]:
    """Keeps up to `most` tasks going. Where it ends by an error, `running` holds what has not been yielded."""
    while waiting or running:
        while waiting and len(running) < most:
            future = submit(waiting[0])
            running[future] = waiting.popleft()
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            summary = future.result()
            del running[future]
            yield summary


def _lost(shards: Iterable[int]) -> UserError:
    names = ", ".join(str(shard) for shard in sorted(shards))
    return UserError(
        f"shard {names}: the worker was killed {MAX_LOSSES + 1} times; is there memory enough for a shard?"
    )


@dataclass
class Summary:
    """What a task over texts tells of its shard."""

    num_texts: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # bad samples by reason
    bad_shown: list[tuple[str, str]] = field(default_factory=list)  # (reason, where) of the first of them

    def skip(self, reason: str, where: str) -> None:
        """Counts a bad sample."""
        self.bad[reason] += 1
        if len(self.bad_shown) < NUM_BAD_SHOWN:
            self.bad_shown.append((reason, where))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What `vars` gave, after its way through JSON."""
        shown = [(reason, where) for reason, where in record["bad_shown"]]
        return cls(**{**record, "bad": Counter(record["bad"]), "bad_shown": shown})


B = TypeVar("B", bound=Summary)


def told(ctx: Context, summaries: Iterable[B], num_shards: int, **shown: Callable[[], Any]) -> Iterator[B]:
    """Passes summaries on, and tells the listeners of shards, texts a second, the time left, and bad samples.

    Args:
        ctx: of the stage that runs.
        summaries: what `run_shards` yields.
        num_shards: how many there will be.
        shown: further numbers for people; each is asked for after the summary was taken up.
    """
    num_texts, begun = 0, time.monotonic()
    for done, summary in enumerate(summaries, 1):
        yield summary
        for reason, where in summary.bad_shown:
            ctx.skip(reason, where)
        ctx.bad.update(summary.bad - Counter(reason for reason, _ in summary.bad_shown))
        num_texts += summary.num_texts
        seconds = max(1e-9, time.monotonic() - begun)
        times = {
            "texts_per_second": round(num_texts / seconds),
            "eta_seconds": round(seconds * (num_shards / done - 1)),
        }
        ctx.progress(done, num_shards, "shards", **times, **{name: value() for name, value in shown.items()})
