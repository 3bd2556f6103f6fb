"""Results for the usable images of an annotated dataset, and a check of the size of predicted maps."""

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
    """Yield the number of each usable image and the result of `compute`.

    If several processes share the evaluation, each computes every N-th image.

    Args:
        source: Annotated images.
        reading: Tolerance of bad samples.
        ctx: Context of the stage.
        compute: Computes the result of an image. It may raise BadSample.
        for_others: Reduces a result for all processes but the first.

    Raises:
        UserError: If too many images are bad.
    """
    return each_result(
        source, reading, ctx, compute, lambda batch: [result for _, result in batch], for_others=for_others
    )


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
    """Yield the number of each usable image and its result, like `each_image`, but compute images in batches.

    Args:
        source: The images.
        reading: Tolerance for bad images.
        ctx: Receives progress and bad images.
        read: Reads an image by its number, or raises BadSample.
        compute: Computes the results of a batch of (number, image).
        batch_size: Number of images in a batch.
        for_others: Reduces a result for all processes but the first. Default: they get the whole result.
        at_once: Number of batches of each process that are sent together.

    Raises:
        UserError: If too many images are bad.
    """

    def of_batch(numbers: list[int]) -> list[tuple[int, R | BadSample]]:
        outcomes: dict[int, R | BadSample] = {}
        usable: list[tuple[int, T]] = []
        for number in numbers:
            image = _read(read, number)
            if isinstance(image, BadSample):
                outcomes[number] = image
            else:
                usable.append((number, image))
        if usable:
            for (number, _), result in zip(usable, compute(usable), strict=True):
                outcomes[number] = result
        return sorted(outcomes.items())

    def reduced(batch: list[tuple[int, R | BadSample]]) -> list[tuple[int, R | BadSample]]:
        assert for_others
        outcomes: list[tuple[int, R | BadSample]] = []
        for number, result in batch:
            outcomes.append((number, result if isinstance(result, BadSample) else for_others(result)))
        return outcomes

    bad = BadSamples(ctx)
    # Each process computes every n-th batch, and the first one receives all results in order.
    batches = in_batches(range(len(source)), batch_size)
    share = map(of_batch, own_share(batches))
    for batch in of_all(share, for_others=reduced if for_others else None, at_once=at_once):
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


def check_size(file: object, predicted: NDArray[np.integer], size: tuple[int, int]) -> None:
    """Check that a predicted map has the size of its image.

    Args:
        file: Path of the map, for the message.
        predicted: (H, W).
        size: Width and height of the image.

    Raises:
        UserError: If the sizes differ.
    """
    width, height = size
    if predicted.shape != (height, width):
        got = f"{predicted.shape[1]} x {predicted.shape[0]}"
        raise UserError(f"{file}: expected {width} x {height} pixels, got {got}")
