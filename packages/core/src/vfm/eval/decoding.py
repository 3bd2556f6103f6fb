"""The samples of a data set with their pictures decoded, batch by batch, a batch ahead of whoever takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from PIL import Image

from vfm.data import BadSample, Sample, Source
from vfm.data.images import decode_image
from vfm.eval.fingerprint import item_digest

if TYPE_CHECKING:
    from vfm.eval.encode import Reading

Decoded = tuple[Sample, Image.Image, bytes] | BadSample


def decoded_batches(
    source: Source, reading: Reading, check: Callable[[Sample], None], numbers: Sequence[int] | None = None
) -> Iterator[list[tuple[int, Decoded]]]:
    """Batches of (number, sample, picture and digest), of all samples or of these.

    The next batch is decoded while the caller works on this one.
    """

    def submit(number: int) -> Future[Decoded] | BadSample:
        try:
            sample = source[number]  # read here, in one thread: readers share file handles
            check(sample)
        except BadSample as bad:
            return bad
        return pool.submit(_decode, sample)

    def results(pending: Sequence[tuple[int, Future[Decoded] | BadSample]]) -> list[tuple[int, Decoded]]:
        return [(number, item.result() if isinstance(item, Future) else item) for number, item in pending]

    with ThreadPoolExecutor(max(1, reading.threads)) as pool:
        waiting: list[tuple[int, Future[Decoded] | BadSample]] = []
        wanted = range(len(source)) if numbers is None else numbers
        for start in range(0, len(wanted), reading.batch_size):
            submitted = [(number, submit(number)) for number in wanted[start : start + reading.batch_size]]
            if waiting:
                yield results(waiting)
            waiting = submitted
        if waiting:
            yield results(waiting)


def _decode(sample: Sample) -> Decoded:
    try:
        image = decode_image(sample.image, sample.key)
        return sample, image, item_digest([sample.key, sample.texts, sample.label], [sample.image])
    except BadSample as bad:
        return bad
