"""Batches of an evaluation that several processes share: each computes some, all get the results of all.

The batches are those of one process, so the results are the same bits, wherever the processes are alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice, zip_longest
from typing import TypeVar

from vfm.config import UserError
from vfm.stage import LeftToFirst
from vfm.train.dist import World

R = TypeVar("R")
T = TypeVar("T")
AT_ONCE = 8  # results of each process that are sent together
_sharing: ContextVar[World | None] = ContextVar("sharing", default=None)


@contextmanager
def sharing(world: World) -> Iterator[None]:
    """Share batches among all processes within the context, which all of them enter with equal models and data.

    No process waits at its end: the first one may score for hours, longer than a collective operation may take.
    """
    token = _sharing.set(world if world.size > 1 else None)
    try:
        yield
    finally:
        _sharing.reset(token)


def leave_to_first() -> None:
    """Go on in the first process only, once all batches are computed; it alone scores and writes, and shares no more.

    Raises:
        LeftToFirst: in the others.
    """
    world = _sharing.get()
    if world and not world.is_main:
        raise LeftToFirst
    _sharing.set(None)


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last one of the rest."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def own_share(batches: Iterable[T]) -> Iterator[T]:
    """Yield every N-th batch, those that this one of N processes computes."""
    world = _sharing.get()
    return islice(batches, world.rank, None, world.size) if world else iter(batches)


def of_all(own: Iterator[R]) -> Iterator[R]:
    """Yield the results of all processes in the order of the batches.

    Args:
        own: computes the results of `own_share`, one by one; what it calls shares nothing.

    Raises:
        UserError: the first one, in the order of the batches, that a process has met.
    """
    world = _sharing.get()
    if not world:
        yield from own
        return
    while any(parts := world.gather(_next_results(own))):
        for row in zip_longest(*parts):
            for result in row:
                if isinstance(result, UserError):
                    raise result
                if result is not None:  # the last batches are less than one for each process
                    yield result


def agree(value: T) -> list[T]:
    """Return a value as each process has it."""
    world = _sharing.get()
    return world.gather(value) if world else [value]


def writes_files() -> bool:
    """Return whether this is the process that writes what all of them have."""
    world = _sharing.get()
    return not world or world.is_main


def _next_results(own: Iterator[R]) -> list[R | UserError]:
    results: list[R | UserError] = []
    token = _sharing.set(None)
    try:
        results.extend(islice(own, AT_ONCE))
    except UserError as error:
        results.append(error)
    finally:
        _sharing.reset(token)
    return results
