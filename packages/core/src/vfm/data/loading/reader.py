"""Read planned micro-batches, in this process or in a worker, and replace samples that cannot be used."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic

from torch.utils.data import Dataset

from vfm.base import UserError
from vfm.data.index.source import ReadsAhead, Samples
from vfm.data.loading.batch import Batch, Inputs, Make, SampleDraw, stack
from vfm.data.loading.batch_make import BatchMake, ContentMemory
from vfm.data.loading.plan import Planned
from vfm.data.reading.shard_cache import CacheSettings, ShardCache
from vfm.data.samples.sample import BadSample, Sample

MAX_TRIES = 1000
WAIT_TOGETHER = 256  # samples of remote shards that are requested at once: 25 MB for images of 100 kB
READ_TOGETHER = 64  # samples read before decoding, so that the code for reading stays in the processor's cache

Content = tuple[str, Any]
"""Key of a sample, and the content that a `BatchMake` read."""
Use = tuple[str, Any]
"""Key of a sample, and its use by a `BatchMake`, or its inputs from another `Make`."""


class Reader(Dataset[Batch[Inputs] | UserError], Generic[Inputs]):
    """Reads planned micro-batches, in this process or in a worker.

    With a `memory`, the samples that it keeps are neither read nor decoded again.
    """

    def __init__(
        self,
        source: Samples,
        make: Make[Inputs],
        cache: CacheSettings | None = None,
        memory: ContentMemory | None = None,
    ) -> None:
        self.source, self.make, self.memory = source, make, memory
        self.cache = ShardCache(cache) if cache else None
        self.last = 0  # number of the sample that was read last

    def __getitem__(self, planned: Any) -> Batch[Inputs] | UserError:
        try:
            return self.read(planned)
        except UserError as error:  # returned, because torch rewrites the messages of errors raised in workers
            return error

    @abstractmethod
    def read(self, planned: Any) -> Batch[Inputs]:
        """Read the planned batch."""

    def samples(self, planned: Sequence[tuple[int, int]]) -> Iterator[Sample | Content | BadSample]:
        """Yield the sample of each (epoch, sample number), its kept content, or the reason why it cannot be read."""
        for start in range(0, len(planned), READ_TOGETHER):
            if start % WAIT_TOGETHER == 0 and isinstance(self.source, ReadsAhead):
                together = [index for _, index in planned[start : start + WAIT_TOGETHER] if not self.kept(index)]
                self.source.read_ahead(together, self.cache)
            yield from self._read_together(planned[start : start + READ_TOGETHER])

    def _read_together(self, planned: Sequence[tuple[int, int]]) -> list[Sample | Content | BadSample]:
        """Read samples before the caller decodes the first.

        Samples of an index are read in the order of their numbers, so that a row group of a table is decoded once.
        The first is the one nearer to the last sample before, whose row group is still in memory.
        """
        places = list(range(len(planned)))
        if isinstance(self.source, ReadsAhead):
            places.sort(key=lambda place: planned[place][1])
            first, last = (planned[places[end]][1] for end in (0, -1))
            if abs(last - self.last) < abs(first - self.last):
                places.reverse()
            self.last = planned[places[-1]][1]
        read = {place: self.sample(*planned[place]) for place in places}
        return [read[place] for place in range(len(planned))]

    def sample(self, epoch: int, index: int) -> Sample | Content | BadSample:
        """Read a sample, unless its content is kept."""
        try:
            return self.kept(index) or self.source.sample(index, epoch)
        except BadSample as bad:
            return bad

    def kept(self, index: int) -> Content | None:
        """Look up the content of a sample in memory."""
        return self.memory.get(index) if self.memory else None

    def use(self, draw: SampleDraw, sample: Sample | Content | BadSample) -> Use:
        """Make a sample's part of the batch.

        Raises:
            BadSample: If the sample cannot be read or used.
        """
        if isinstance(sample, BadSample):
            raise sample
        try:
            if isinstance(self.make, BatchMake):
                key, content = sample if isinstance(sample, tuple) else self._content(self.make, draw.index, sample)
                return key, self.make.use(content, draw)
            assert isinstance(sample, Sample)  # only the contents of a `BatchMake` are kept
            return sample.key, self.make(sample, draw)
        except BadSample as bad:
            raise BadSample(bad.reason, self.source.where(draw.index)) from None

    def _content(self, make: BatchMake[Any, Inputs], index: int, sample: Sample) -> Content:
        content = make.read(sample)
        if self.memory:
            self.memory.keep(index, sample.key, content)
        return sample.key, content

    def batch(self, uses: Sequence[Use], draws: Sequence[SampleDraw], bad: list[tuple[str, str]]) -> Batch[Inputs]:
        """Join samples to a batch.

        Args:
            uses: Contents of the samples.
            draws: Draw of each sample.
            bad: (reason, where) of the skipped samples.
        """
        if not uses or not isinstance(self.make, BatchMake):
            return stack(uses, bad)
        keys, parts = zip(*uses, strict=True)
        return Batch(self.make.join(list(parts), draws), list(keys), bad)


class TrainingReader(Reader[Inputs]):
    """Replaces unusable samples.

    Args:
        seed: Seed of all draws of the training run.
        max_bad_fraction: Tolerated fraction of bad samples. It determines the number of replacements that are tried.
    """

    def __init__(
        self,
        source: Samples,
        make: Make[Inputs],
        cache: CacheSettings | None,
        memory: ContentMemory | None,
        *,
        seed: int,
        max_bad_fraction: float,
    ) -> None:
        super().__init__(source, make, cache, memory)
        self.seed, self.tries = seed, _tries(max_bad_fraction)

    def read(self, planned: Planned) -> Batch[Inputs]:
        """Read the samples of a micro-batch."""
        bad: list[tuple[str, str]] = []
        uses, draws = [], []
        for place, repeat, sample in zip(planned.samples, planned.repeats, self.samples(planned.samples), strict=True):
            use, draw = self._replaced(planned.step, place, repeat, sample, bad)
            uses.append(use)
            draws.append(draw)
        return self.batch(uses, draws, bad)

    def _replaced(
        self,
        step: int,
        place: tuple[int, int],
        repeat: int,
        sample: Sample | Content | BadSample,
        bad: list[tuple[str, str]],
    ) -> tuple[Use, SampleDraw]:
        epoch, index = place
        for attempt in range(self.tries + 1):
            if attempt:
                # Negative steps, so that the choice of a replacement is independent of the draws of all steps.
                index = self.source.another(epoch, index, SampleDraw.of(self.seed, -attempt, index).seed)
                sample = self.sample(epoch, index)
            draw = SampleDraw.of(self.seed, step, index, repeat)
            try:
                return self.use(draw, sample), draw
            except BadSample as error:
                bad.append((error.reason, error.where))
        reason, where = bad[-1]
        raise UserError(f"{where}: {reason}; the {self.tries} samples tried in its place cannot be used either")


def _tries(max_bad_fraction: float) -> int:
    """Compute the number of replacements to try.

    Bad samples at `max_bad_fraction` rarely (1e-9) use them up.
    """
    if max_bad_fraction <= 0:
        return 0
    if max_bad_fraction >= 0.97:
        return MAX_TRIES
    return math.ceil(math.log(1e-9) / math.log(max_bad_fraction))
