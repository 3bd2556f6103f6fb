"""Read the samples of any dataset artifact at random. It may be a pool, a curated subset, or a labelled dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.index.balanced import BalancedEpochs
from vfm.data.index.index import read_index
from vfm.data.index.repeated import RepeatedEpochs
from vfm.data.index.subset import ShardTexts, SubsetView, TextDraw
from vfm.data.reading.byte_ranges import Held, ReadAhead, read_together
from vfm.data.reading.open_files import max_open_shards
from vfm.data.reading.recent_groups import RecentGroups
from vfm.data.reading.shard_cache import ShardCache
from vfm.data.samples.order import Epochs, Order, SameEpochs, SampleOrder
from vfm.data.samples.sample import Sample
from vfm.interfaces import CuratedSubset, ImageDataset, Pool, TarList
from vfm.storage.remote_spans import Span


def open_dataset(artifact: ImageDataset) -> Source:
    """Open the samples of an artifact. This only reads the index.

    Raises:
        UserError: If the artifact's folder has no index, or a list of tars without their samples.
    """
    if isinstance(artifact, TarList):
        raise UserError(f"{artifact.path}: expected an index of samples, got a list of tars; import it as data.pairs")
    if isinstance(artifact, CuratedSubset):
        pool = Pool.load(artifact.linked(artifact.pool))
        return Source(pool.path.resolve(), artifact.path.resolve())
    return Source(artifact.path.resolve())


def open_balanced(artifact: ImageDataset, *, seed: int, language: str | None = None) -> Source:
    """Open a curated subset whose texts are redrawn in each epoch, by their stored probabilities.

    Args:
        artifact: The subset.
        seed: Seed of the draws, together with the epoch.
        language: Draw only from the texts of this language. None: all languages.

    Raises:
        UserError: If the artifact is not a CuratedSubset, so there are no probabilities.
    """
    check_balanced(artifact)
    assert isinstance(artifact, CuratedSubset)
    pool = Pool.load(artifact.linked(artifact.pool))
    draw = TextDraw(seed, language, one_per_image=artifact.texts == "one_per_image")
    return Source(pool.path.resolve(), artifact.path.resolve(), draw)


def check_balanced(artifact: ImageDataset) -> None:
    """Check that the data have probabilities.

    Raises:
        UserError: If the artifact is not a CuratedSubset.
    """
    if not isinstance(artifact, CuratedSubset):
        kind = type(artifact).__name__
        raise UserError(f"sampler: balanced expects a CuratedSubset, got a {kind}: {artifact.path}")


class Samples(Protocol):
    """Training samples, such as a `Source`, a `Mixture` or a `VideoSource`."""

    @property
    def directory(self) -> Path:
        """Folder of the dataset, for messages."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read a sample by its number.

        Raises:
            BadSample: If the sample cannot be used.
        """
        ...

    def sample(self, index: int, epoch: int) -> Sample:
        """Read a sample as an epoch uses it.

        Raises:
            BadSample: If the sample cannot be used.
        """
        ...

    def order(self, *, seed: int, shuffle_shards: int) -> Order:
        """Create the endless stream of sample numbers."""
        ...

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to a sample of the epoch.

        The sample replaces an unusable one.

        Args:
            epoch: Number of the epoch.
            index: The unusable sample.
            number: Any number.
        """
        ...

    def where(self, index: int) -> str:
        """Format the address of a sample for messages."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """Samples whose bytes can be read ahead, many at once."""

    def read_ahead(self, indices: Sequence[int], cache: ShardCache | None = None) -> None:
        """Read the bytes of the samples that are needed next."""
        ...


class Source:
    """The good samples of a dataset, numbered shard by shard.

    `shard_sizes` is the number of samples of each shard, so that an order can be computed without reading any sample.
    `epochs` defines the samples of each training epoch. A Source can be pickled for worker processes. They read the
    index again.
    """

    def __init__(self, directory: Path, subset: Path | None = None, draw: TextDraw | None = None) -> None:
        """Open the index in `directory`, restricted to the curated `subset` if given.

        With a `draw`, the source has all samples with a text that an epoch may draw.
        """
        self.directory, self.subset, self.draw = directory, subset, draw
        self.index = read_index(directory)
        self.view = SubsetView(subset, len(self.index.shards), draw) if subset else None
        self.shard_sizes: NDArray[np.int64] = self.view.shard_sizes if self.view else self.index.shard_sizes()
        self.epochs: Epochs = SameEpochs(self.shard_sizes)
        if self.view and draw:
            self.epochs = BalancedEpochs(self.view)
        self._ends = np.cumsum(self.shard_sizes)
        self._len = int(self.shard_sizes.sum())
        self._ahead = ReadAhead()
        self._remote = self.index.shards.remote
        self._any_remote = bool(self._remote.any())
        self.keep_open(max_open_shards())

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"epochs": self.epochs} if isinstance(self.epochs, RepeatedEpochs) else None
        return Source, (self.directory, self.subset, self.draw), state

    def keep_open(self, num_shards: int) -> None:
        """Keep the shards open that were read last, up to a number."""
        kept = lru_cache(num_shards)
        self._open = kept(partial(self.index.open, ahead=self._ahead, groups=RecentGroups()))
        self._rows_shown = kept(self.view.rows) if self.view else None

    def __len__(self) -> int:
        return self._len

    @property
    def same_in_epochs(self) -> bool:
        """Whether a sample has the same texts in every epoch."""
        return self.draw is None

    def __getitem__(self, index: int) -> Sample:
        """Read a sample by its number.

        Raises:
            BadSample: If the sample cannot be used.
            IndexError: If the number is out of range.
        """
        return self._read(*self.locate(index))

    def sample(self, index: int, epoch: int) -> Sample:
        """Read a sample with the texts that an epoch uses.

        These are all texts, or the drawn ones.

        Raises:
            BadSample: If the sample cannot be used.
        """
        return self._read(*self.locate(index), epoch)

    def spans(self, indices: Sequence[int]) -> list[Span]:
        """List the byte ranges of the given samples in remote tars."""
        if not self._any_remote:
            return []
        spans = []
        for shard, row in map(self.locate, indices):
            if self._remote[shard]:
                spans += self._open(shard).spans(row)
        return spans

    def read_ahead(self, indices: Sequence[int], cache: ShardCache | None = None) -> None:
        """Read the bytes of the samples that are needed next, from remote tars with few concurrent requests."""
        self.hold(read_together(self.spans(indices), cache))

    def hold(self, held: Held) -> None:
        """Hold spans that have been read until their samples are read."""
        self._ahead.hold(held)

    def locate(self, index: int) -> tuple[int, int]:
        """Find the (shard, row) of a sample."""
        if not 0 <= index < self._len:
            raise IndexError(f"sample {index} of {self._len}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        offset = index - int(self._ends[shard] - self.shard_sizes[shard])
        if self._rows_shown:
            return shard, int(self._rows_shown(shard)[offset])
        if shard in self.index.bad_rows:
            return shard, int(self.index.rows(shard)[offset])
        return shard, offset

    def facts(self, index: int) -> Sample:
        """Read a sample without its image.

        Raises:
            BadSample: If the sample cannot be used.
        """
        return self._read(*self.locate(index), with_image=False)

    def order(self, *, seed: int, shuffle_shards: int) -> SampleOrder:
        """Create the endless stream of sample numbers for training."""
        return SampleOrder(self.epochs, seed=seed, shuffle_shards=shuffle_shards)

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to a sample of the epoch, as a replacement for an unusable sample."""
        return self.epochs.sample(epoch, number)

    def key(self, index: int) -> str:
        """Look up the key of a sample without reading it."""
        shard, row = self.locate(index)
        return self._open(shard).key(row)

    def where(self, index: int) -> str:
        """Format the address of a sample for messages, from its shard and key or the path of a listed image."""
        shard, row = self.locate(index)
        return self._open(shard).where(row)

    @property
    def keys(self) -> list[str]:
        """Keys of all samples. Opens every shard."""
        rows_of = self._rows_shown or self.index.rows
        keys = []
        for shard in np.flatnonzero(self.shard_sizes).tolist():
            reader = self._open(shard)
            keys += [reader.key(int(row)) for row in rows_of(shard)]
        return keys

    @property
    def class_names(self) -> list[str]:
        """Class names, if the samples have labels."""
        return self.index.spec.class_names

    def texts_of_shard(self, shard: int, on_bad: Callable[[str, str], None] | None = None) -> Any:
        """Read all texts of a shard, without the images, to stream over a pool's captions.

        Args:
            shard: Number of the shard.
            on_bad: Called with (reason, where) of each unusable sample, such as `ctx.skip`.

        Returns:
            A pyarrow Table in the schema `texts_schema`: row, uid, language, text_index (index among the sample's texts
            in that language), text. It is ordered by row, the spec's languages, text_index.

        Raises:
            UserError: If the shard is missing, changed or, if it is remote, unreachable in part.
        """
        # The readers are not cached: streaming opens each shard once, and the rows and keys of all shards are large.
        shown = self.view.read(shard) if self.view else None
        rows = shown.samples if shown else self.index.rows(shard)
        texts = self.index.open(shard).texts(rows, on_bad or (lambda reason, where: None))
        return _narrowed(texts, shown) if shown else texts

    def _read(self, shard: int, row: int, epoch: int | None = None, *, with_image: bool = True) -> Sample:
        sample = self._open(shard).read(row, with_image=with_image)
        if not self.view:
            return sample
        return replace(sample, texts=self.view.narrow(sample, shard, row, epoch))


def _narrowed(texts: Any, view: ShardTexts) -> Any:
    """Select the texts of a shard that a view contains."""
    shown = pa.table(
        {
            "row": view.rows,
            "language": pa.array(view.languages, pa.string()).take(view.language),
            "text_index": view.text_index,
        }
    )
    # Arrow's join does not keep the order of rows, so the rows are numbered before the join and sorted after it.
    numbered = texts.select(shown.column_names).append_column("place", pa.array(np.arange(len(texts))))
    matches = numbered.join(shown, keys=shown.column_names, join_type="left semi")
    return texts.take(matches["place"].sort())
