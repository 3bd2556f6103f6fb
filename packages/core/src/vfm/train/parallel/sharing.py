"""Share an evaluation's batches among processes. Each computes some, and rank 0 receives all results.

The batches are the same as in a single process, so on equal machines the results are identical bit for bit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice, zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

from vfm.base import UserError
from vfm.interfaces import LeftToFirst
from vfm.train.parallel.dist import DistributedWorld

R = TypeVar("R")
T = TypeVar("T")
WITHOUT_VALUES = re.compile("meta(?!data)")  # in every torch error about a tensor from `without_values`
AT_ONCE = 8  # results of each process that are sent together
_NOTHING: Any = object()
_sharing: ContextVar[DistributedWorld | None] = ContextVar("sharing", default=None)
_repeating: ContextVar[DistributedWorld | None] = ContextVar("repeating", default=None)


@contextmanager
def sharing(world: DistributedWorld) -> Iterator[None]:
    """Share batches among all processes within the context. All processes must enter it with equal models and data.

    No process waits at the end, since rank 0 may score for longer than the timeout of a collective operation.

    Raises:
        UserError: If another process continues with features whose values only rank 0 has.
    """
    token = _sharing.set(world if world.size > 1 else None)
    threads = torch.get_num_threads()
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if world.is_main or not WITHOUT_VALUES.search(str(error)):
            raise
        raise UserError(
            "an evaluation in several processes must call vfm.train.leave_to_first() once all is encoded, since only"
            f" the first process has the features ({str(error).splitlines()[0]})"
        ) from error
    finally:
        _sharing.reset(token)
        torch.set_num_threads(threads)


@contextmanager
def repeating(world: DistributedWorld) -> Iterator[None]:
    """Compute all batches in each process within the context, in the same order, since their model is sharded."""
    token = _repeating.set(world)
    try:
        yield
    finally:
        _repeating.reset(token)


def leave_to_first() -> None:
    """Continue in rank 0 only, after all batches have been computed. Rank 0 scores and writes.

    Rank 0 takes over the CPU threads of the other processes on its machine, which torchrun counts.

    Raises:
        LeftToFirst: In all other processes.
    """
    world = _sharing.get()
    if not world:
        return
    if not world.is_main:
        raise LeftToFirst
    _sharing.set(None)
    torch.set_num_threads(torch.get_num_threads() * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`. The last list may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def own_share(batches: Iterable[T]) -> Iterator[T]:
    """Yield the batches that this process computes: every N-th batch with N processes."""
    world = _sharing.get()
    if not world:
        return iter(batches)
    return islice(batches, world.rank, None, world.size)


def of_all(results: Iterator[R], *, for_others: Callable[[R], R] | None = None, at_once: int = AT_ONCE) -> Iterator[R]:
    """Yield the results of all processes in the order of the batches.

    Args:
        results: Computes the results for `own_share`, one by one, without nested sharing.
        for_others: Reduces a result for all processes but the first, for example with `without_values`. Default: they
            get the whole result.
        at_once: Number of results of each process that are sent together. 1 suits large results.

    Raises:
        UserError: If a process has raised one. It is the first in the order of the batches.
    """
    world = _sharing.get()
    if not world:
        yield from results
        return
    while any(parts := _gather(world, _next_results(results, at_once), for_others)):
        for row in zip_longest(*parts, fillvalue=_NOTHING):
            for result in row:
                if isinstance(result, UserError):
                    raise result
                if result is not _NOTHING:  # the last batches are less than one for each process
                    yield result


def of_first(make: Callable[[], R], *, for_others: Callable[[R], R] | None = None) -> R:
    """Compute a value in rank 0, and return it there and `for_others` of it in the other processes.

    Raises:
        UserError: If rank 0 has raised it. It is raised in all processes.
    """
    world = _sharing.get()
    if not world:
        return make()
    values = _next_results((make() for _ in range(int(world.is_main))), 1)
    # Rank 0 keeps its value, which may be too large to be sent.
    (sent,), *_ = world.gather(_reduced(values, for_others))
    value: R | UserError = values[0] if world.is_main else sent
    if isinstance(value, UserError):
        raise value
    return value


def without_values(tensor: Tensor) -> Tensor:
    """Create a tensor of the same shape without values (torch's device `meta`). It costs nothing to send."""
    return tensor.to("meta")


def writes_files() -> bool:
    """Check whether this process scores, and writes the results of all processes."""
    world = _sharing.get() or _repeating.get()
    return not world or world.is_main


def _gather(
    world: DistributedWorld, results: list[R | UserError], for_others: Callable[[R], R] | None
) -> list[list[R | UserError]]:
    """Gather the results of each process."""
    if for_others is None:
        return world.gather(results)
    whole = world.gather_to_first(results)
    reduced = world.gather(_reduced(results, for_others))
    return whole if world.is_main else reduced


def _reduced(results: list[R | UserError], for_others: Callable[[R], R] | None) -> list[R | UserError]:
    if for_others is None:
        return results
    return [result if isinstance(result, UserError) else for_others(result) for result in results]


def _next_results(iterator: Iterator[R], at_once: int) -> list[R | UserError]:
    results: list[R | UserError] = []
    token = _sharing.set(None)
    try:
        results.extend(islice(iterator, at_once))
    except UserError as error:
        results.append(error)
    finally:
        _sharing.reset(token)
    return results
