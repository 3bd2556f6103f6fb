"""The index of a data set: which shards it has, and how many samples each. Images stay where they are.

An `ImageDataset` artifact's folder holds

    shards.parquet      path (absolute, remote, or relative to the folder), format, size in bytes, mtime in ns,
                        num_samples
    index.json          what to take of each sample (`DatasetSpec`)
    bad_samples.parquet shard, row, reason, where: found when the shards were read for the index, and left out;
                        row is -1 where a shard breaks off and nobody knows how much is lost
    offsets/            what a scan of a tar found, kept when the tar is first opened
    images-*.parquet    shards of the format `files`: a list of image files with their texts and labels

`row` counts the samples of a shard, bad ones too. Formats: `tar`, `files`, `parquet` (image bytes in a column).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from vfm.config import UserError
from vfm.data import files
from vfm.data.sample import Sample
from vfm.data.spec import DatasetSpec
from vfm.data.texts import OnBad, Rows

Format = Literal["tar", "files", "parquet"]
SHARDS_FILE, SPEC_FILE, BAD_FILE = "shards.parquet", "index.json", "bad_samples.parquet"


@dataclass(frozen=True)
class Shard:
    """A file that holds samples, as it was when it was indexed; `num_samples` counts bad ones too."""

    path: str
    format: Format
    size: int
    mtime: int
    num_samples: int

    @classmethod
    def of(cls, path: str | Path, num_samples: int, *, format: Format = "tar") -> Shard:  # noqa: A002
        """The shard at a path, with its present size and time."""
        size, mtime = files.size_and_time(str(path))
        return cls(str(path), format, size, mtime, num_samples)


@dataclass(frozen=True)
class BadRow:
    """A sample that was found to be bad when it was indexed."""

    shard: int
    row: int
    reason: str
    where: str


class ShardReader(Protocol):
    """Random access to the samples of one shard."""

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """The name of a row's sample."""
        ...

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """The sample of a row; raises BadSample where it cannot be used."""
        ...

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """The texts of rows, ascending: equal to `texts_by_sample` of `read` without images, or faster."""
        ...


@dataclass(frozen=True)
class Index:
    """What `write_index` wrote, read back."""

    directory: Path
    shards: list[Shard]
    spec: DatasetSpec
    bad_rows: dict[int, NDArray[np.int64]]  # shard -> rows left out

    def open(self, shard: int) -> ShardReader:
        """A reader of one shard.

        Raises:
            UserError: the shard is gone, or not the file that was indexed.
        """
        entry, path = self.shards[shard], self._path(shard)
        size, _ = files.size_and_time(path)
        if size != entry.size:
            raise UserError(f"{path}: changed since it was indexed ({entry.size} bytes then, {size} now); run it again")
        cache = self.directory / "offsets" / f"{shard:06d}.parquet"
        name = entry.path.removeprefix(self._folder)
        return open_shard(path, entry.format, self.spec, size=size, cache=cache, name=name)

    def state(self) -> str:
        """Tells whether the files behind the samples changed: sizes and times of shards, and of listed image files."""
        digest = hashlib.sha256()
        for shard, entry in enumerate(self.shards):
            path = self._path(shard)
            for file in (path, *(listed_images(path) if entry.format == "files" else ())):
                try:
                    facts = files.size_and_time(file)
                except UserError:
                    facts = (-1, 0)  # gone
                digest.update(f"{file} {facts}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _path(self, shard: int) -> str:
        path = self.shards[shard].path
        return path if files.is_remote(path) else str(self.directory / path)

    @cached_property
    def _folder(self) -> str:
        """What the paths of all shards begin with, up to a slash: files of one name in two folders differ behind it."""
        return os.path.commonprefix([shard.path for shard in self.shards]).rpartition("/")[0] + "/"  # noqa: RUF071

    def rows(self, shard: int) -> NDArray[np.int64]:
        """The good rows of a shard."""
        rows = np.arange(self.shards[shard].num_samples)
        return np.delete(rows, self.bad_rows[shard]) if shard in self.bad_rows else rows

    def shard_sizes(self) -> NDArray[np.int64]:
        """Good samples of each shard."""
        return np.array(
            [entry.num_samples - len(self.bad_rows.get(i, ())) for i, entry in enumerate(self.shards)], dtype=np.int64
        )


def listed_images(path: str) -> list[str]:
    """The files that a shard of the format `files` lists."""
    import pyarrow.parquet as pq

    return list(pq.read_table(path, columns=["image"])["image"].to_pylist())


def open_shard(
    path: str,
    format: Format,  # noqa: A002
    spec: DatasetSpec,
    *,
    size: int,
    cache: Path | None = None,
    name: str | None = None,
) -> ShardReader:
    """A reader of a shard of any format; `name` tells a parquet file from the others of its data set."""
    if format == "tar":
        from vfm.data.webdataset import TarShard

        return TarShard(path, size, spec, cache)
    if format == "files":
        from vfm.data.image_list import ImageListShard

        return ImageListShard(path, spec)
    from vfm.data.parquet import ParquetShard

    return ParquetShard(path, spec, name)


def write_index(directory: Path, shards: Sequence[Shard], spec: DatasetSpec, *, bad_rows: Iterable[BadRow] = ()) -> int:
    """Writes the index of these shards into an artifact's folder. Shards inside it are addressed relative to it.

    Returns:
        Number of samples that can be used.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    bad = list(bad_rows)
    addresses = [_address(shard.path, directory) for shard in shards]
    inside = [not files.is_remote(address) and not Path(address).is_absolute() for address in addresses]
    columns = {
        "path": pa.array(addresses, pa.string()),
        "format": pa.array([shard.format for shard in shards], pa.string()),
        "size": pa.array([shard.size for shard in shards], pa.int64()),
        # What is made here has no time, so that the same data make the same index whenever they are made.
        "mtime": pa.array([0 if here else s.mtime for s, here in zip(shards, inside, strict=True)], pa.int64()),
        "num_samples": pa.array([shard.num_samples for shard in shards], pa.int64()),
    }
    pq.write_table(pa.table(columns), directory / SHARDS_FILE)
    (directory / SPEC_FILE).write_text(spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if bad:
        rows = [{"shard": one.shard, "row": one.row, "reason": one.reason, "where": one.where} for one in bad]
        pq.write_table(pa.Table.from_pylist(rows), directory / BAD_FILE)
    return sum(shard.num_samples for shard in shards) - sum(one.row >= 0 for one in bad)


def _address(path: str, directory: Path) -> str:
    if files.is_remote(path):
        return path
    absolute = Path(path).resolve()
    inside = absolute.is_relative_to(directory.resolve())
    return str(absolute.relative_to(directory.resolve()) if inside else absolute)


def read_index(directory: Path) -> Index:
    """The index of an artifact's folder.

    Raises:
        UserError: there is none, or one that this version cannot read.
    """
    import pyarrow.parquet as pq

    if not (directory / SHARDS_FILE).is_file():
        raise UserError(f"{directory}: {SHARDS_FILE} is missing; this is no data set of images")
    shards = [Shard(**row) for row in pq.read_table(directory / SHARDS_FILE).to_pylist()]
    unknown = {shard.format for shard in shards} - set(get_args(Format))
    if unknown:
        raise UserError(f"{directory / SHARDS_FILE}: format {unknown.pop()!r} is not one of {get_args(Format)}")
    spec = DatasetSpec.model_validate_json((directory / SPEC_FILE).read_bytes())
    bad: dict[int, list[int]] = {}
    if (directory / BAD_FILE).is_file():
        table = pq.read_table(directory / BAD_FILE, columns=["shard", "row"])
        for row in table.to_pylist():
            if row["row"] >= 0:
                bad.setdefault(row["shard"], []).append(row["row"])
    return Index(directory, shards, spec, {shard: np.array(rows) for shard, rows in bad.items()})
