"""Read annotated images one by one, skip and count what cannot be used, and check the size of predicted maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vfm.config import UserError
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
    first_bad = ""
    for number in range(len(source)):
        try:
            found = read(number)
        except BadSample as problem:
            first_bad = first_bad or f"{problem.where} ({problem.reason})"
            bad[problem.reason] += 1
            ctx.skip(problem.reason, problem.where)
        else:
            yield number, found
        ctx.progress(number + 1, len(source), "images")
    reading.check_bad(bad, len(source), first=first_bad)


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
