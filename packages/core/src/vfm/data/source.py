"""Random access to the samples of any data set artifact: a Pool, a curated view of one, a labelled set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.artifacts import CuratedSubset, ImageDataset, Pool
from vfm.data.index import read_index
from vfm.data.sample import BadSample, Sample
from vfm.data.subset import SubsetView

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


class Source:
    """The good samples of a data set, numbered shard by shard.

    `shard_sizes` holds the number of samples of each shard: with it an order can be made without reading anything.
    A Source can be sent to worker processes: they read the index anew.
    """

    def __init__(self, directory: Path, subset: Path | None = None) -> None:
        """Opens the index in `directory`, and looks at it through the curated `subset` where one is given."""
        self.directory, self.subset = directory, subset
        self.index = read_index(directory)
        self.view = SubsetView(subset, len(self.index.shards)) if subset else None
        self.shard_sizes: NDArray[np.int64] = self.view.shard_sizes if self.view else self.index.shard_sizes()
        self._ends = np.cumsum(self.shard_sizes)
        self._open = lru_cache(OPEN_SHARDS)(self.index.open)
        self._rows = lru_cache(OPEN_SHARDS)(self.view.rows if self.view else self.index.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Source, (self.directory, self.subset)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        """The sample of a number.

        Raises:
            BadSample: it cannot be used; take another.
            IndexError: there is no such number.
        """
        return self._read(*self.locate(index))

    def locate(self, index: int) -> tuple[int, int]:
        """The (shard, row) of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[shard] - self.shard_sizes[shard])
        return shard, int(self._rows(shard)[place])

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
            pyarrow Table: row int32, uid string, language string, text_index int32 (place among the sample's texts of
            that language), text string; in the order of rows, of the spec's languages, of text_index.
        """
        import pyarrow as pa

        rows: list[tuple[int, str, str, int, str]] = []
        for row in self._rows(shard).tolist():
            try:
                sample = self._read(shard, row, with_image=False)
            except BadSample as bad:
                if on_bad:
                    on_bad(bad.reason, bad.where)
                continue
            places = self.view.texts(shard, row) if self.view else None
            for language, texts in sample.texts.items():
                indices = places[language] if places else range(len(texts))
                rows += [(row, sample.uid, language, *pair) for pair in zip(indices, texts, strict=True)]
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * 5
        kinds = [pa.int32(), pa.string(), pa.string(), pa.int32(), pa.string()]
        names = ["row", "uid", "language", "text_index", "text"]
        return pa.table([pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)], names=names)

    def _read(self, shard: int, row: int, *, with_image: bool = True) -> Sample:
        sample = self._open(shard).read(row, with_image=with_image)
        return replace(sample, texts=self.view.narrow(sample, shard, row)) if self.view else sample
