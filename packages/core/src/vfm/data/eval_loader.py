"""Batches for an evaluation: all samples once, in order, the same whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vfm.config import UserError
from vfm.data.loader import Batch, Make, Reader, read_batches, sample_seed, stack
from vfm.data.sample import BadSample
from vfm.data.source import Source


class _EvalReader(Reader):
    """Passes over what cannot be used."""

    def read(self, planned: range) -> Batch:
        bad: list[tuple[str, str]] = []
        made = []
        for index, sample in zip(planned, self.samples([(0, index) for index in planned]), strict=True):
            try:
                made.append(self.made(index, sample_seed(0, 0, index), sample))
            except BadSample as error:
                bad.append((error.reason, error.where))
        return stack(made, bad)


def ordered_batches(source: Source, make: Make, plan: Iterable[range], *, workers: int = 0) -> Iterator[Batch]:
    """A batch of each range of samples, in order; those that cannot be used are passed over and told in its `bad`."""
    return read_batches(_EvalReader(source, make), plan, workers)


def eval_batches(source: Source, make: Make, batch_size: int, *, workers: int = 0) -> Iterator[Batch]:
    """All samples of a source once, in order; those that cannot be used are passed over and told in `bad`.

    Raises:
        UserError: not one sample can be used.
    """
    plan = [range(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
    held: Batch | None = None  # given out one step late, so that it can carry what was bad after it
    bad: list[tuple[str, str]] = []
    for batch in ordered_batches(source, make, plan, workers=workers):
        bad += batch["bad"]
        if batch["keys"]:
            if held:
                yield held
            held, bad = batch | {"bad": bad}, []
    if held is None:
        what = f"; the first is {bad[0][1]}: {bad[0][0]}" if bad else ""
        raise UserError(f"{source.directory}: no sample can be used{what}")
    held["bad"] += bad
    yield held
