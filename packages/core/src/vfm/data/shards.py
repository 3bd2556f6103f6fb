"""A shard of a dataset, as a record of the index and as a reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from vfm import files
from vfm.data.sample import Sample
from vfm.data.texts import OnBad, Rows

Format = Literal["tar", "files", "parquet"]


@dataclass(frozen=True)
class Shard:
    """A file with samples, as it was when it was indexed; `num_samples` includes bad ones."""

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


class ShardReader(Protocol):
    """Random access to the samples of one shard."""

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """Return the key of a row's sample."""
        ...

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """Read the sample of a row; raises BadSample if it cannot be used."""
        ...

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """Return the texts of ascending rows; equal to `texts_by_sample` of `read` without images, or faster."""
        ...
