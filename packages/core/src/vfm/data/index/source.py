"""Random access to the samples of any dataset artifact: a Pool, a curated view of one, a labelled dataset."""

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
from vfm.data.index.subset import ShardTexts, SubsetView, TextDraw
from vfm.data.reading.byte_ranges import Held, ReadAhead, read_together
from vfm.data.reading.shard_cache import ShardCache
from vfm.data.samples.order import Epochs, Order, SameEpochs, SampleOrder
from vfm.data.samples.sample import Sample
from vfm.interfaces import CuratedSubset, ImageDataset, Pool
from vfm.storage.remote import Span

OPEN_SHARDS = 512  # shards that stay open; their offsets are mapped, so that this costs file descriptors only


def open_dataset(artifact: ImageDataset) -> Source:
    """Open the samples of an artifact. This only reads the index.

    Raises:
        UserError: the artifact's folder has no index.
    """
    if isinstance(artifact, CuratedSubset):
        pool = Pool.load(artifact.linked(artifact.pool))
        return Source(pool.path.resolve(), artifact.path.resolve())
    return Source(artifact.path.resolve())


def open_balanced(artifact: ImageDataset, *, seed: int, language: str | None = None) -> Source:
    """Open a curated subset whose texts each epoch draws again, by their stored probabilities.

    Args:
        artifact: the subset.
        seed: seed of the draws, together with the epoch.
        language: draw only from the texts of this language; None: all.

    Raises:
        UserError: the artifact is not a CuratedSubset, so there are no probabilities.
    """
    check_balanced(artifact)
    assert isinstance(artifact, CuratedSubset)
    pool = Pool.load(artifact.linked(artifact.pool))
    draw = TextDraw(seed, language, one_per_image=artifact.texts == "one_per_image")
    return Source(pool.path.resolve(), artifact.path.resolve(), draw)


def check_balanced(artifact: ImageDataset) -> None:
    """Check that the data have probabilities.

    Raises:
        UserError: the artifact is not a CuratedSubset.
    """
    if not isinstance(artifact, CuratedSubset):
        kind = type(artifact).__name__
        raise UserError(f"sampler: balanced expects a CuratedSubset, got a {kind}: {artifact.path}")


class Samples(Protocol):
    """The samples of a training: a `Source`, a `Mixture` or a `VideoSource`."""

    @property
    def directory(self) -> Path:
        """Folder of the dataset, for messages."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of a number; raises BadSample."""
        ...

    def sample(self, index: int, epoch: int) -> Sample:
        """Return the sample of a number as an epoch uses it; raises BadSample."""
        ...

    def order(self, *, seed: int, shuffle_shards: int) -> Order:
        """Return the endless stream of sample numbers."""
        ...

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to a sample of the epoch, as a replacement for one that cannot be used."""
        ...

    def where(self, index: int) -> str:
        """Return the address of a sample for messages."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """Samples whose bytes can be read before their use, many with one wait."""

    def read_ahead(self, indices: Sequence[int], cache: ShardCache | None = None) -> None:
        """Read the bytes of samples that are read next."""
        ...


class Source:
    """The good samples of a dataset, numbered shard by shard.

    `shard_sizes` is the number of samples of each shard, so that an order can be made without reading any. `epochs`
    defines the samples of each epoch of a training. A Source can be pickled for worker processes, which read the index
    again.
    """

    def __init__(self, directory: Path, subset: Path | None = None, draw: TextDraw | None = None) -> None:
        """Open the index in `directory`, restricted to the curated `subset` if one is given.

        With a `draw`, the samples are all those with a text that an epoch may draw.
        """
        self.directory, self.subset, self.draw = directory, subset, draw
        self.index = read_index(directory)
        self.view = SubsetView(subset, len(self.index.shards), draw) if subset else None
        self.shard_sizes: NDArray[np.int64] = self.view.shard_sizes if self.view else self.index.shard_sizes()
        self.epochs: Epochs = BalancedEpochs(self.view) if self.view and draw else SameEpochs(self.shard_sizes)
        self._ends = np.cumsum(self.shard_sizes)
        self._len = int(self.shard_sizes.sum())
        self._ahead = ReadAhead()
        self._open = lru_cache(OPEN_SHARDS)(partial(self.index.open, ahead=self._ahead))
        self._rows_shown = lru_cache(OPEN_SHARDS)(self.view.rows) if self.view else None
        self._remote = self.index.shards.remote
        self._any_remote = bool(self._remote.any())

    def __reduce__(self) -> tuple[Any, ...]:
        return Source, (self.directory, self.subset, self.draw)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> Sample:
        """Read the sample of a number.

        Raises:
            BadSample: the sample cannot be used.
            IndexError: the number is out of range.
        """
        return self._read(*self.locate(index))

    def sample(self, index: int, epoch: int) -> Sample:
        """Read the sample with the texts that an epoch uses: all, or those that it draws.

        Raises:
            BadSample: the sample cannot be used.
        """
        return self._read(*self.locate(index), epoch)

    def spans(self, indices: Sequence[int]) -> list[Span]:
        """Return the ranges of remote tars that the samples of these numbers take."""
        if not self._any_remote:
            return []
        places = map(self.locate, indices)
        return [span for shard, row in places if self._remote[shard] for span in self._open(shard).spans(row)]

    def read_ahead(self, indices: Sequence[int], cache: ShardCache | None = None) -> None:
        """Read the bytes of samples that are read next: those of remote tars with few concurrent requests."""
        self.hold(read_together(self.spans(indices), cache))

    def hold(self, held: Held) -> None:
        """Use spans that were read when their samples are read."""
        self._ahead.hold(held)

    def locate(self, index: int) -> tuple[int, int]:
        """Return the (shard, row) of a sample."""
        if not 0 <= index < self._len:
            raise IndexError(f"sample {index} of {self._len}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[shard] - self.shard_sizes[shard])
        if self._rows_shown:
            return shard, int(self._rows_shown(shard)[place])
        return shard, int(self.index.rows(shard)[place]) if shard in self.index.bad_rows else place

    def facts(self, index: int) -> Sample:
        """Read the sample of a number without its image.

        Raises:
            BadSample: the sample cannot be used.
        """
        return self._read(*self.locate(index), with_image=False)

    def order(self, *, seed: int, shuffle_shards: int) -> SampleOrder:
        """Return the endless stream of sample numbers for a training."""
        return SampleOrder(self.epochs, seed=seed, shuffle_shards=shuffle_shards)

    def another(self, epoch: int, index: int, number: int) -> int:
        """Map any number to a sample of the epoch, as a replacement for one that cannot be used."""
        return self.epochs.sample(epoch, number)

    def key(self, index: int) -> str:
        """Return the key of a sample, without reading it."""
        shard, row = self.locate(index)
        return self._open(shard).key(row)

    def where(self, index: int) -> str:
        """Return the address of a sample for messages: its shard and its key, or the image file of a list."""
        shard, row = self.locate(index)
        return self._open(shard).where(row)

    @property
    def keys(self) -> list[str]:
        """Keys of all samples; opens every shard."""
        shards = np.flatnonzero(self.shard_sizes).tolist()
        rows = self._rows_shown or self.index.rows
        return [self._open(shard).key(int(row)) for shard in shards for row in rows(shard)]

    @property
    def class_names(self) -> list[str]:
        """Class names, if the samples have labels."""
        return self.index.spec.class_names

    def texts_of_shard(self, shard: int, on_bad: Callable[[str, str], None] | None = None) -> Any:
        """Return all texts of a shard, without the images, for streaming over a pool's captions.

        Args:
            shard: number of the shard.
            on_bad: called with (reason, where) of each sample that cannot be used, such as `ctx.skip`.

        Returns:
            pyarrow Table in the schema `texts_schema`: row, uid, language, text_index (index among the sample's texts
            of that language), text; ordered by row, the spec's languages, text_index.
        """
        # The readers are not cached: streaming opens each shard once, and rows and keys of all shards would add up.
        shown = self.view.read(shard) if self.view else None
        rows = shown.samples if shown else self.index.rows(shard)
        texts = self.index.open(shard).texts(rows, on_bad or (lambda reason, where: None))
        return _narrowed(texts, shown) if shown else texts

    def _read(self, shard: int, row: int, epoch: int | None = None, *, with_image: bool = True) -> Sample:
        sample = self._open(shard).read(row, with_image=with_image)
        return replace(sample, texts=self.view.narrow(sample, shard, row, epoch)) if self.view else sample


def _narrowed(texts: Any, view: ShardTexts) -> Any:
    """Return the texts of a shard that a view contains."""
    shown = pa.table(
        {
            "row": view.rows,
            "language": pa.array(view.languages, pa.string()).take(view.language),
            "text_index": view.text_index,
        }
    )
    # Arrow's join does not keep the order of rows, so the rows are numbered before and sorted after it.
    places = texts.select(shown.column_names).append_column("place", pa.array(np.arange(len(texts))))
    found = places.join(shown, keys=shown.column_names, join_type="left semi")
    return texts.take(found["place"].sort())
