"""Results of annotated images, without those that cannot be used, and a check of the size of predicted maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data import BadSample
from vfm.data.annotated import AnnotatedSource
from vfm.eval.base import ReadSettings
from vfm.eval.encode.bad_samples import BadSamples
from vfm.interfaces import Context
from vfm.train.parallel.sharing import AT_ONCE, in_batches, of_all, own_share

T = TypeVar("T")
R = TypeVar("R")


def each_image(
    source: AnnotatedSource,
    reading: ReadSettings,
    ctx: Context,
    compute: Callable[[int], T],
    for_others: Callable[[T], T] | None = None,
) -> Iterator[tuple[int, T]]:
    """Yield the number of each usable image and what `compute`, which may raise BadSample, returns for it.

    Several processes that share an evaluation compute every N-th image each; all but the first one get `for_others` of
    the results, where it is given.

    Raises:
        UserError: too many images are bad, or all.
    """
    return each_result(source, reading, ctx, compute, lambda batch: [one for _, one in batch], for_others=for_others)


def each_result(
    source: AnnotatedSource,
    reading: ReadSettings,
    ctx: Context,
    read: Callable[[int], T],
    compute: Callable[[list[tuple[int, T]]], list[R]],
    *,
    batch_size: int = 1,
    for_others: Callable[[R], R] | None = None,
    at_once: int = AT_ONCE,
) -> Iterator[tuple[int, R]]:
    """Yield the number of each usable image and its result; the images are computed in batches, as `each_image` does.

    Args:
        source: the images.
        reading: tolerated bad images.
        ctx: takes progress and bad images.
        read: returns an image by its number, or raises BadSample.
        compute: returns the results of a batch of (number, image).
        batch_size: images in a batch.
        for_others: what all processes but the first get of a result; default: all of it.
        at_once: batches of each process that are sent together.

    Raises:
        UserError: too many images are bad, or all.
    """

    def of_batch(numbers: list[int]) -> list[tuple[int, R | BadSample]]:
        found = {number: _read(read, number) for number in numbers}
        usable = [(number, one) for number, one in found.items() if not isinstance(one, BadSample)]
        results = dict(zip([number for number, _ in usable], compute(usable), strict=True)) if usable else {}
        return [(number, one if isinstance(one, BadSample) else results[number]) for number, one in found.items()]

    def reduced(batch: list[tuple[int, R | BadSample]]) -> list[tuple[int, R | BadSample]]:
        assert for_others
        return [(number, one if isinstance(one, BadSample) else for_others(one)) for number, one in batch]

    bad = BadSamples(ctx)
    own = map(of_batch, own_share(in_batches(range(len(source)), batch_size)))
    for batch in of_all(own, for_others=reduced if for_others else None, at_once=at_once):
        for number, result in batch:
            if isinstance(result, BadSample):
                bad.skip(result)
            else:
                yield number, result
            ctx.progress(number + 1, len(source), "images")
    bad.check(reading, len(source))


def _read(read: Callable[[int], T], number: int) -> T | BadSample:
    try:
        return read(number)
    except BadSample as problem:
        return problem


def check_size(file: object, found: NDArray[np.integer], size: tuple[int, int]) -> None:
    """Check that a predicted map has its image's size.

    Args:
        file: of the map, for the message.
        found: (H, W).
        size: width and height of the image.

    Raises:
        UserError: it has another size.
    """
    width, height = size
    if found.shape != (height, width):
        raise UserError(f"{file}: expected {width} x {height} pixels, got {found.shape[1]} x {found.shape[0]}")
