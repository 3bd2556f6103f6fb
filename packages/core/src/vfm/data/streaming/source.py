"""A stream of tars as a source of training samples, which needs a list of tars and no index of their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from vfm.base import UserError
from vfm.data.index.index import read_index
from vfm.data.index.source import Samples, Source, open_dataset
from vfm.data.samples.sample import BadSample, Sample
from vfm.data.streaming.lane import HELD_BACK, Lane, Tars
from vfm.data.streaming.lanes import Lanes, StreamOrder
from vfm.data.streaming.streamed_tar import StreamedTar
from vfm.interfaces import Context, ImageDataset, TarList, Training

UNCOUNTED = 1 << 62  # stands for the number of samples, which is not known
HEAD = 64  # samples of a stream that are shown


def open_samples(artifact: ImageDataset, config: Training, ctx: Context) -> Source | TarStream:
    """Open the samples of a training.

    They are read by an index, or from a list of tars as they arrive.

    Args:
        artifact: The dataset.
        config: Settings of the training.
        ctx: Context of the stage.
    """
    if not isinstance(artifact, TarList):
        return open_dataset(artifact)
    stream = open_stream(artifact)
    warn_of_readers(stream, config, ctx)
    return stream


def open_head(artifact: ImageDataset) -> Source:
    """Open a dataset to look at its first samples. Of a list of tars only the first samples are there."""
    if not isinstance(artifact, TarList):
        return open_dataset(artifact)
    return cast("Source", StreamHead(artifact.path.resolve(), artifact.lanes, artifact.lane_samples))


def warn_of_readers(source: Samples, config: Training, ctx: Context) -> None:
    """Warn if several workers of a training read the same tars of a stream.

    Args:
        source: Samples of the training.
        config: Settings of the training.
        ctx: Context of the stage.
    """
    readers = source.readers(config) if isinstance(source, TarStream) else 1
    if readers > 1:
        ctx.warn(
            f"{config.name}: each tar is read by {readers} workers: set lanes of its data to a multiple of the workers"
            " of all processes"
        )


def open_stream(artifact: TarList) -> TarStream:
    """Open a list of tars to train on their samples as they arrive."""
    return TarStream(artifact.path.resolve(), artifact.lanes, artifact.lane_samples)


class TarStream:
    """The samples of tars, numbered by their position in a lane and the lane. Replaces a `Source` in training.

    The offsets of a tar are stored in the artifact once the tar was read to its end, so that a training that goes on
    enters its lanes without reading the tars before. Where they are missing, the tar is scanned.
    """

    def __init__(self, directory: Path, lanes: int, run: int) -> None:
        """Open the list in a folder.

        Raises:
            UserError: If there are no tars, or files of other formats.
        """
        self.directory, self.lanes, self.run = directory, lanes, run
        self.index = read_index(directory)
        other = self.index.shards.formats - {StreamedTar.format}
        if other or not len(self.index.shards):
            raise UserError(f"{directory}: expected tars to stream, got {', '.join(sorted(other)) or 'no file'}")
        self._open_lanes: dict[int, Lane] = {}
        self._order: Lanes | None = None
        self._sizes: dict[int, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory, self.lanes, self.run)

    def __len__(self) -> int:
        """Give a number larger than any that is needed. Samples are not counted, and a stream has no end."""
        return UNCOUNTED

    def __getitem__(self, index: int) -> Sample:
        """Read a sample in the order of seed 0.

        Raises:
            BadSample: The sample cannot be used.
        """
        return self.sample(index, 0)

    def sample(self, index: int, epoch: int) -> Sample:
        """Read a sample. For a stream, the seed of its order stands for the epoch.

        Raises:
            BadSample: The sample cannot be used.
            UserError: If a tar cannot be read, or has changed.
        """
        entry, _ = self._entry(index, epoch)
        if isinstance(entry, BadSample):
            raise entry
        return entry

    def order(self, *, seed: int, shuffle_shards: int) -> StreamOrder:
        """Create the endless stream of sample numbers. Groups of tars have a fixed size.

        What was read for an earlier pass is given up.
        """
        self._open_lanes.clear()
        return StreamOrder(self._lanes(seed))

    def readers(self, config: Training) -> int:
        """Count the workers of a training that read the same tars, at most. It should be 1."""
        processes, workers = config.runtime.processes, max(1, config.runtime.num_workers)
        share = max(1, config.global_batch_size // processes)
        micro_batch = min(config.micro_batch_size or share, share)
        return self._lanes(config.seed).readers(processes, workers, micro_batch, -(-share // micro_batch))

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to a nearby entry of the same lane, as a replacement for an unusable sample."""
        position, lane = divmod(index, self.lanes)
        other = position - 1 - number % min(position, HELD_BACK) if position else 1 + number % HELD_BACK
        return other * self.lanes + lane

    def where(self, index: int) -> str:
        """Format the address of a sample that was read lately for messages."""
        _, where = self._entry(index, self._order.seed if self._order else 0)
        return where

    def _entry(self, index: int, seed: int) -> tuple[Sample | BadSample, str]:
        position, number = divmod(index, self.lanes)
        order = self._lanes(seed)
        if number not in self._open_lanes:
            self._open_lanes[number] = Lane(number, order, Tars(self._open, self._size, self._keep))
        return self._open_lanes[number][position]

    def _lanes(self, seed: int) -> Lanes:
        if self._order is None or self._order.seed != seed:
            self._order = Lanes(len(self.index.shards), self.lanes, self.run, seed)
            self._open_lanes.clear()
        return self._order

    def _open(self, number: int) -> StreamedTar:
        shard, name = self.index.located(number)
        return StreamedTar(shard, self.index.spec, name)

    def _size(self, number: int) -> int:
        if number not in self._sizes:
            tar = self.index.open(number)
            self._sizes[number] = len(tar) + len(tar.lost)
        return self._sizes[number]

    def _keep(self, number: int, tar: StreamedTar) -> None:
        if number not in self._sizes:
            self._sizes[number] = len(tar) + len(tar.lost)
            self.index.save_offsets(number, tar.packed)


class StreamHead(TarStream):
    """The first samples of the first lane of a stream, in the order of seed 0, numbered from 0."""

    def __len__(self) -> int:
        return HEAD

    def _entry(self, index: int, seed: int) -> tuple[Sample | BadSample, str]:
        return super()._entry(index * self.lanes, 0)
