"""Reading annotated images one by one: what cannot be used is skipped, counted and reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from vfm.data import BadSample
from vfm.data.annotated import AnnotatedSource
from vfm.stage import Context
from vfm.stages.evaluation.base import ReadSettings

T = TypeVar("T")


def each_image(
    source: AnnotatedSource, reading: ReadSettings, ctx: Context, read: Callable[[int], T]
) -> Iterator[tuple[int, T]]:
    """Yield the number of each usable image and what `read` returns for it.

    Raises:
        UserError: too many images are bad, or all.
    """
    bad: Counter[str] = Counter()
    for number in range(len(source)):
        try:
            found = read(number)
        except BadSample as problem:
            bad[problem.reason] += 1
            ctx.skip(problem.reason, problem.where)
        else:
            yield number, found
        ctx.progress(number + 1, len(source), "images")
    reading.check_bad(bad, len(source))


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last one of the rest."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
