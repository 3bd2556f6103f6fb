"""Batches of an evaluation that several processes share: each computes some, the first one gets the results of all.

The batches are those of one process, so the results are the same bits, wherever the processes are alike.
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
from vfm.train.parallel.dist import World

R = TypeVar("R")
T = TypeVar("T")
WITHOUT_VALUES = re.compile("meta(?!data)")  # in every error of torch about a tensor of `without_values`
AT_ONCE = 8  # results of each process that are sent together
_NOTHING: Any = object()
_sharing: ContextVar[World | None] = ContextVar("sharing", default=None)


@contextmanager
def sharing(world: World) -> Iterator[None]:
    """Share batches among all processes within the context, which all of them enter with equal models and data.

    No process waits at its end: the first one may score for hours, longer than a collective operation may take.

    Raises:
        UserError: another process goes on with features whose values only the first one has.
    """
    token, threads = _sharing.set(world if world.size > 1 else None), torch.get_num_threads()
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


def leave_to_first() -> None:
    """Go on in the first process only, once all batches are computed; it alone scores and writes, and shares no more.

    It takes the CPU threads of the other processes of its machine, which torchrun counts.

    Raises:
        LeftToFirst: in the others.
    """
    world = _sharing.get()
    if not world:
        return
    if not world.is_main:
        raise LeftToFirst
    _sharing.set(None)
    torch.set_num_threads(torch.get_num_threads() * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last one of the rest."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def own_share(batches: Iterable[T]) -> Iterator[T]:
    """Yield every N-th batch, those that this one of N processes computes."""
    world = _sharing.get()
    return islice(batches, world.rank, None, world.size) if world else iter(batches)


def of_all(own: Iterator[R], *, for_others: Callable[[R], R] | None = None, at_once: int = AT_ONCE) -> Iterator[R]:
    """Yield the results of all processes in the order of the batches.

    Args:
        own: computes the results of `own_share`, one by one; what it calls shares nothing.
        for_others: what the other processes get of a result, such as `without_values` of features; default: all of it.
        at_once: results of each process that are sent together; 1 suits large ones.

    Raises:
        UserError: the first one, in the order of the batches, that a process has met.
    """
    world = _sharing.get()
    if not world:
        yield from own
        return
    while any(parts := _gather(world, _next_results(own, at_once), for_others)):
        for row in zip_longest(*parts, fillvalue=_NOTHING):
            for result in row:
                if isinstance(result, UserError):
                    raise result
                if result is not _NOTHING:  # the last batches are less than one for each process
                    yield result


def of_first(make: Callable[[], R], *, for_others: Callable[[R], R] | None = None) -> R:
    """Return what the first process makes, and in the others `for_others` of it; its UserError is raised in all."""
    world = _sharing.get()
    if not world:
        return make()
    made = _next_results((make() for _ in range(int(world.is_main))), 1)
    (sent,), *_ = world.gather(_reduced(made, for_others))  # what the first keeps may be too large to be sent
    found: R | UserError = made[0] if world.is_main else sent
    if isinstance(found, UserError):
        raise found
    return found


def without_values(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape without values (torch's device `meta`), which costs nothing to send."""
    return tensor.to("meta")


def writes_files() -> bool:
    """Return whether this is the process that scores, and writes what all of them have computed."""
    world = _sharing.get()
    return not world or world.is_main


def _gather(
    world: World, results: list[R | UserError], for_others: Callable[[R], R] | None
) -> list[list[R | UserError]]:
    """Return the results of each process."""
    if for_others is None:
        return world.gather(results)
    whole = world.gather_to_first(results)
    reduced = world.gather(_reduced(results, for_others))
    return whole if world.is_main else reduced


def _reduced(results: list[R | UserError], for_others: Callable[[R], R] | None) -> list[R | UserError]:
    return [one if isinstance(one, UserError) or for_others is None else for_others(one) for one in results]


def _next_results(own: Iterator[R], at_once: int) -> list[R | UserError]:
    results: list[R | UserError] = []
    token = _sharing.set(None)
    try:
        results.extend(islice(own, at_once))
    except UserError as error:
        results.append(error)
    finally:
        _sharing.reset(token)
    return results
