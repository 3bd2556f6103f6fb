"""Random access to the samples of any data set artifact: a Pool, a curated view of one, a labelled set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.artifacts import CuratedSubset, ImageDataset, Pool
from vfm.config import UserError
from vfm.data.balanced import BalancedEpochs
from vfm.data.index import read_index
from vfm.data.order import Epochs, SameEpochs, SampleOrder
from vfm.data.sample import Sample
from vfm.data.subset import Draw, ShardTexts, SubsetView

OPEN_SHARDS = 1024  # shards whose offsets stay in memory, about half a MB each with 10,000 samples


def open_dataset(artifact: ImageDataset) -> Source:
    """The samples behind an artifact. Opening reads the index alone.

    Raises:
        UserError: the artifact's folder holds no index.
    """
    if isinstance(artifact, CuratedSubset):
        pool = Pool.load(artifact.linked(artifact.pool))
        return Source(pool.path.resolve(), artifact.path.resolve())
    return Source(artifact.path.resolve())


def open_balanced(artifact: ImageDataset, *, seed: int, language: str | None = None) -> Source:
    """The samples of a curated subset whose texts each epoch draws anew, by their stored probabilities.

    Args:
        artifact: the subset.
        seed: of the draws, together with the epoch.
        language: draw from the texts of this one alone.

    Raises:
        UserError: the data are no curated subset, so there are no probabilities.
    """
    check_balanced(artifact)
    assert isinstance(artifact, CuratedSubset)
    pool = Pool.load(artifact.linked(artifact.pool))
    draw = Draw(seed, language, one_per_image=artifact.texts == "one_per_image")
    return Source(pool.path.resolve(), artifact.path.resolve(), draw)


def check_balanced(artifact: ImageDataset) -> None:
    """Refuses data without probabilities.

    Raises:
        UserError: they are no curated subset.
    """
    if not isinstance(artifact, CuratedSubset):
        kind = type(artifact).__name__
        raise UserError(f"sampler: balanced draws by a CuratedSubset's probabilities; {artifact.path} is a {kind}")


class Source:
    """The good samples of a data set, numbered shard by shard.

    `shard_sizes` holds the number of samples of each shard: with it an order can be made without reading anything.
    `epochs` says which samples a training's epochs have. A Source can be sent to worker processes: they read the index
    anew.
    """

    def __init__(self, directory: Path, subset: Path | None = None, draw: Draw | None = None) -> None:
        """Opens the index in `directory`, and looks at it through the curated `subset` where one is given.

        With a `draw` the samples are all that have a text which an epoch may draw.
        """
        self.directory, self.subset, self.draw = directory, subset, draw
        self.index = read_index(directory)
        self.view = SubsetView(subset, len(self.index.shards), draw) if subset else None
        self.shard_sizes: NDArray[np.int64] = self.view.shard_sizes if self.view else self.index.shard_sizes()
        self.epochs: Epochs = BalancedEpochs(self.view) if self.view and draw else SameEpochs(self.shard_sizes)
        self._ends = np.cumsum(self.shard_sizes)
        self._open = lru_cache(OPEN_SHARDS)(self.index.open)
        self._rows = lru_cache(OPEN_SHARDS)(self.view.rows if self.view else self.index.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Source, (self.directory, self.subset, self.draw)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        """The sample of a number.

        Raises:
            BadSample: it cannot be used; take another.
            IndexError: there is no such number.
        """
        return self._read(*self.locate(index))

    def sample(self, index: int, epoch: int) -> Sample:
        """The sample with the texts that an epoch uses: all, or those that it draws.

        Raises:
            BadSample: it cannot be used; take another.
        """
        return self._read(*self.locate(index), epoch)

    def locate(self, index: int) -> tuple[int, int]:
        """The (shard, row) of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[shard] - self.shard_sizes[shard])
        return shard, int(self._rows(shard)[place])

    def facts(self, index: int) -> Sample:
        """The sample of a number without its image.

        Raises:
            BadSample: it cannot be used.
        """
        return self._read(*self.locate(index), with_image=False)

    def order(self, *, seed: int, shuffle_shards: int) -> SampleOrder:
        """The endless stream of sample numbers that a training takes."""
        return SampleOrder(self.epochs, seed=seed, shuffle_shards=shuffle_shards)

    def another(self, epoch: int, index: int, number: int) -> int:
        """A sample of the epoch that any number leads to, in the place of one that cannot be used."""
        return self.epochs.sample(epoch, number)

    def key(self, index: int) -> str:
        """The name of a sample, without reading it."""
        shard, row = self.locate(index)
        return self._open(shard).key(row)

    def where(self, index: int) -> str:
        """The address of a sample for people: its shard and its key."""
        shard, row = self.locate(index)
        return f"{self.index.shards[shard].path}:{self._open(shard).key(row)}"

    @property
    def keys(self) -> list[str]:
        """The names of all samples; opens every shard."""
        shards = np.flatnonzero(self.shard_sizes).tolist()
        return [self._open(shard).key(int(row)) for shard in shards for row in self._rows(shard)]

    @property
    def class_names(self) -> list[str]:
        """The classes, where the samples have labels."""
        return self.index.spec.class_names

    def texts_of_shard(self, shard: int, on_bad: Callable[[str, str], None] | None = None) -> Any:
        """All texts of a shard, without the images: for streaming over a pool's captions.

        Args:
            shard: number of the shard.
            on_bad: told (reason, where) of each sample that cannot be used, such as `ctx.skip`.

        Returns:
            pyarrow Table of `texts_schema`: row, uid, language, text_index (place among the sample's texts of that
            language), text; in the order of rows, of the spec's languages, of text_index.
        """
        # Nothing of it is kept: who streams comes by once, and the shards' rows and keys would add up.
        shown = self.view.read(shard) if self.view else None
        rows = shown.samples if shown else self.index.rows(shard)
        texts = self.index.open(shard).texts(rows, on_bad or (lambda reason, where: None))
        return _narrowed(texts, shown) if shown else texts

    def _read(self, shard: int, row: int, epoch: int | None = None, *, with_image: bool = True) -> Sample:
        sample = self._open(shard).read(row, with_image=with_image)
        return replace(sample, texts=self.view.narrow(sample, shard, row, epoch)) if self.view else sample


def _narrowed(texts: Any, view: ShardTexts) -> Any:
    """Those texts of a shard that a view shows."""
    import pyarrow as pa

    shown = pa.table(
        {
            "row": view.rows,
            "language": pa.array(view.languages, pa.string()).take(view.language),
            "text_index": view.text_index,
        }
    )
    places = texts.select(shown.column_names).append_column("place", pa.array(np.arange(len(texts))))
    found = places.join(shown, keys=shown.column_names, join_type="left semi")
    return texts.take(found["place"].sort())
