"""A shard of a dataset, as a record of the index and as a reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data.samples.sample import Sample
from vfm.data.samples.texts import OnBad, Rows
from vfm.storage import files

Format = Literal["tar", "files", "parquet"]


@dataclass(frozen=True)
class Shard:
    """A file with samples, as it was when it was indexed; `num_samples` includes bad ones.

    Of a remote file, `mtime` is a hash of the mark of its content, such as its ETag (0: it has none).
    """

    path: str
    format: Format
    size: int
    mtime: int
    num_samples: int

    @classmethod
    def of(cls, path: str | Path, num_samples: int, *, format: Format = "tar") -> Shard:  # noqa: A002
        """Return the shard at a path, with its current size and time."""
        size, mtime = files.size_and_time(str(path))
        return cls(str(path), format, size, mtime, num_samples)


Found = tuple[Shard, bool] | str
"""A shard with a flag: True if its samples need not be counted; or the path of a tar about which nothing is known."""


class ShardTable(Sequence[Shard]):
    """The shards of an index, kept as columns: a million take 100 MB instead of 500."""

    def __init__(self, table: Any) -> None:
        """Take the columns of a pyarrow table.

        Raises:
            ValueError: a shard has no path, or a negative number of samples.
        """
        self._paths, self._formats = table["path"].combine_chunks(), table["format"].combine_chunks()
        self._numbers = [table[name].to_numpy() for name in ("size", "mtime")]
        self.num_samples: NDArray[np.int64] = table["num_samples"].to_numpy().astype(np.int64)
        lengths = pc.binary_length(self._paths)
        if table.num_rows and (lengths.null_count or pc.min(lengths).as_py() < 1 or self.num_samples.min() < 0):
            raise ValueError("a shard has no path, or a negative number of samples")

    @property
    def formats(self) -> set[str]:
        """The formats of the shards."""
        return set(self._formats.unique().to_pylist())

    def first_and_last_path(self) -> list[str]:
        """Return the paths that come first and last in alphabetical order; no path: none."""
        return list(pc.min_max(self._paths).as_py().values()) if len(self) else []

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Shard: ...

    @overload
    def __getitem__(self, index: slice) -> list[Shard]: ...

    def __getitem__(self, index: int | slice) -> Shard | list[Shard]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        size, mtime = (int(column[index]) for column in self._numbers)
        return Shard(
            self._paths[index].as_py(), self._formats[index].as_py(), size, mtime, int(self.num_samples[index])
        )


class ShardReader(Protocol):
    """Random access to the samples of one shard."""

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """Return the key of a row's sample."""
        ...

    def where(self, row: int) -> str:
        """Return the address of a row's sample for messages."""
        ...

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """Read the sample of a row; raises BadSample if it cannot be used."""
        ...

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """Return the texts of ascending rows; equal to `texts_by_sample` of `read` without images, or faster."""
        ...
