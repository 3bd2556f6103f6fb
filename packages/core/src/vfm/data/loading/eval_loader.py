"""Yield every sample once for an evaluation, in order, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from vfm.base import UserError
from vfm.data.index.source import Source
from vfm.data.loading.batch import Batch, Inputs, Make, SampleDraw
from vfm.data.loading.loader import read_batches
from vfm.data.loading.reader import Reader
from vfm.data.samples.sample import CURES, BadSample


class _EvalReader(Reader[Inputs]):
    """Skips samples that cannot be used."""

    def read(self, planned: range) -> Batch[Inputs]:
        bad: list[tuple[str, str]] = []
        uses, draws = [], []
        samples = self.samples([(0, index) for index in planned])
        for index, sample in zip(planned, samples, strict=True):
            draw = SampleDraw.of(0, 0, index)
            try:
                uses.append(self.use(draw, sample))
                draws.append(draw)
            except BadSample as error:
                bad.append((error.reason, error.where))
        return self.batch(uses, draws, bad)


def ordered_batches(
    source: Source, make: Make[Inputs], plan: Iterable[range], *, workers: int = 0
) -> Iterator[Batch[Inputs]]:
    """Yield a batch for each range of samples, in order.

    Unusable samples are listed in `bad`.

    Args:
        source: The samples.
        make: Makes the inputs of a batch.
        plan: Range of samples of each batch.
        workers: Processes that read and decode. 0: this process.
    """
    return read_batches(_EvalReader(source, make), plan, workers)


def eval_batches(source: Source, make: Make[Inputs], batch_size: int, *, workers: int = 0) -> Iterator[Batch[Inputs]]:
    """Yield all samples of a source once, in order.

    Unusable samples are skipped, and listed in `bad`.

    Args:
        source: The samples.
        make: Makes the inputs of a batch.
        batch_size: Samples of a batch.
        workers: Processes that read and decode. 0: this process.

    Raises:
        UserError: If no sample can be used.
    """
    plan = [range(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
    held: Batch[Inputs] | None = None  # yielded one step late, so that it can also list the bad samples after it
    bad: list[tuple[str, str]] = []
    for batch in ordered_batches(source, make, plan, workers=workers):
        bad += batch.bad
        if batch.keys:
            if held:
                yield held
            held, bad = replace(batch, bad=bad), []
    if held is None:
        first = f"; the first is {bad[0][1]}: {bad[0][0]}{CURES.get(bad[0][1], '')}" if bad else ""
        raise UserError(f"{source.directory}: no sample can be used{first}")
    yield replace(held, bad=held.bad + bad)
