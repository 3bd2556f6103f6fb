"""Shards of a dataset, as records of the index and as readers.

A shard format is a subclass of `ShardReader`. A plugin adds a format by defining the class in a module that the module
of its entry point imports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.base import UserError, load_function
from vfm.data.ledger.account import Account
from vfm.data.reading.byte_ranges import ReadAhead
from vfm.data.reading.recent_groups import RecentGroups
from vfm.data.samples.sample import BadSample, Reason, Sample, raise_if_unreachable
from vfm.data.samples.spec import DatasetSpec
from vfm.data.samples.texts import OnBad, Rows, texts_by_sample
from vfm.data.samples.values import values_of_records
from vfm.interfaces.plugins import load_plugins
from vfm.storage import files
from vfm.storage.remote_spans import Span

FORMATS = {
    "tar": "vfm.data.tar.webdataset:TarShard",
    "files": "vfm.data.tables.image_list:ImageListShard",
    "parquet": "vfm.data.tables.parquet:ParquetShard",
}
"""Formats of core, which are imported when they are needed."""

Lost = tuple[Reason, str]
"""Reason why a sample of a shard is lost, and its address."""


@dataclass(frozen=True)
class Shard:
    """A file with samples, as it was when it was indexed. `num_samples` includes bad samples.

    For a remote file, `mtime` is a hash of an identifier of its content, such as its ETag (0 without an identifier).
    """

    path: str
    format: str
    size: int
    mtime: int
    num_samples: int

    @classmethod
    def of(cls, path: str | Path, num_samples: int, *, format: str = "tar") -> Shard:  # noqa: A002
        """Create the shard at a path, with its current size and time."""
        size, mtime = files.size_and_time(str(path))
        return cls(str(path), format, size, mtime, num_samples)


class ShardTable(Sequence[Shard]):
    """The shards of an index, stored as columns. A million shards take 100 MB instead of 500."""

    def __init__(self, table: Any) -> None:
        """Take the columns of a pyarrow table.

        Raises:
            ValueError: If a shard has no path, or a negative number of samples.
        """
        self._paths = table["path"].combine_chunks()
        self._formats = table["format"].combine_chunks()
        self._numbers = [table[name].to_numpy() for name in ("size", "mtime")]
        self.num_samples: NDArray[np.int64] = table["num_samples"].to_numpy().astype(np.int64)
        lengths = pc.binary_length(self._paths)
        if table.num_rows and (lengths.null_count or pc.min(lengths).as_py() < 1 or self.num_samples.min() < 0):
            raise ValueError("a shard has no path, or a negative number of samples")

    @property
    def formats(self) -> set[str]:
        """Formats of the shards."""
        return set(self._formats.unique().to_pylist())

    @property
    def remote(self) -> NDArray[np.bool_]:
        """Whether each shard is a remote file, (num_shards,)."""
        mask: NDArray[np.bool_] = pc.match_substring(self._paths, "://").to_numpy(zero_copy_only=False)
        return mask

    def first_and_last_path(self) -> list[str]:
        """Find the first and the last path in alphabetical order. Empty without shards."""
        if not len(self):
            return []
        return list(pc.min_max(self._paths).as_py().values())

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Shard: ...

    @overload
    def __getitem__(self, index: slice) -> list[Shard]: ...

    def __getitem__(self, index: int | slice) -> Shard | list[Shard]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        size, mtime = (int(column[index]) for column in self._numbers)
        return Shard(
            self._paths[index].as_py(), self._formats[index].as_py(), size, mtime, int(self.num_samples[index])
        )


@dataclass(frozen=True)
class Opening:
    """Facts from a dataset's index for opening a shard.

    Attributes:
        name: Unique name of the shard within its dataset, for keys. Default: its file name.
        offsets: Results of earlier scans that `save` stored, in the order in which to try them.
        save: Called with the result of a new scan, data with which the shard is opened faster.
        ahead: Reads the bytes of remote files. Several shards may share it.
        groups: Keeps decoded row groups. Several shards may share it.
        copy: Arrow copy of a table.
        limit: Number of samples that are needed. A format may scan only these.
    """

    name: str | None = None
    offsets: Iterable[bytes | memoryview] = ()
    save: Callable[[bytes], None] | None = None
    ahead: ReadAhead | None = None
    groups: RecentGroups | None = None
    copy: str | None = None
    limit: int | None = None


class ShardReader(ABC):
    """Random access to the samples of a shard, and the base of all shard formats.

    A subclass with a `format` becomes that format. It must define `__len__`, `key` and `read`. The other methods have
    defaults. A format replaces them where it can do better.
    """

    format: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]] = ()  # extensions of the files that a plugin's format reads, without a dot
    expected: ClassVar[str] = ""  # expected names of samples, for the error if there are none
    formats: ClassVar[dict[str, type[ShardReader]]] = {}

    complete: bool = True  # False if the file ends too early
    lost: Sequence[Lost] = ()  # samples that are not rows, because they cannot even be counted

    def __init_subclass__(cls) -> None:
        if "format" in vars(cls):
            cls.formats[cls.format] = cls

    def __init__(self, path: str, spec: DatasetSpec, name: str | None = None) -> None:
        self.path = path
        self.spec = spec
        self.name = name or files.without_query(path).rsplit("/", 1)[-1]

    @classmethod
    def find(cls, path: str) -> tuple[Shard, bool]:
        """Find the shard at a path, with a flag that is True if its samples need not be counted."""
        return Shard.of(path, 0, format=cls.format), False

    @classmethod
    def open(cls, shard: Shard, spec: DatasetSpec, opening: Opening = Opening()) -> Self:
        """Open a shard.

        Args:
            shard: The shard.
            spec: Locations of the parts of a sample.
            opening: How to open it, such as with stored offsets.
        """
        return cls(shard.path, spec, opening.name)

    @classmethod
    def files_behind(cls, path: str) -> list[str]:
        """List the files behind a shard's samples."""
        return [path]

    @classmethod
    def is_read(cls, *, scanned: bool) -> bool:
        """Check whether the samples of a shard are read for its index. `scanned`: the index has a scan of the shard."""
        return True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, row: int) -> str:
        """Look up the key of a row's sample."""

    @abstractmethod
    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """Read the sample of a row.

        Raises:
            BadSample: If the sample cannot be used.
        """

    def account(self) -> Account:
        """Account for each unit of the file by its row, for the ledger. By default the units are the rows."""
        return Account.of_rows(self.path, len(self))

    def where(self, row: int) -> str:
        """Format the address of a row's sample for messages."""
        return f"{self.path}:{self.key(row)}"

    def image_file(self, row: int) -> str | None:
        """Look up the file of a row's image. Several rows may share it. None: the image is in the shard."""
        return None

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """Read the texts of ascending rows in the schema `texts_schema`.

        Raises:
            UserError: If a part of a remote shard cannot be reached.
        """
        return texts_by_sample(lambda row: self.read(row, with_image=False), rows, on_bad)

    def urls(self, rows: NDArray[np.integer[Any]]) -> pa.Array:
        """Read the URLs of rows as strings, null for rows without a URL."""

        def url(row: int) -> str | None:
            try:
                return self.read(row, with_image=False).url
            except BadSample as bad:
                raise_if_unreachable(bad)
                return None

        return pa.array(map(url, rows.tolist()), pa.string())

    def records(self, rows: Sequence[int], names: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """Yield the record of each row with these fields. Broken records are None.

        Args:
            rows: Rows to read.
            names: Names of the fields. The first one is required.
        """
        raise UserError(f"{self.path}: shards of the format {self.format} have no records, so no value {names[0]!r}")

    def values(self, rows: Rows, locations: Sequence[str]) -> pa.Table:
        """Read further values of ascending rows.

        Rows without a value are null there, and so are values of another type than most.

        Args:
            rows: Ascending rows.
            locations: Fields of the records, or columns.

        Returns:
            Table with a column for each location.

        Raises:
            UserError: If the shard stores no such values.
        """
        return values_of_records(self.records(rows.tolist(), locations), locations)

    def own_keys(self, num_keys: int) -> Sequence[str]:
        """Read all keys, or the first ones, if the shard stores them.

        The list is empty if the shard's file name is part of the keys.
        """
        return []

    def spans(self, row: int) -> list[Span]:
        """List the byte ranges that `read` needs from a remote file for a row."""
        return []

    def read_ahead(self, rows: Sequence[int]) -> None:  # noqa: B027 (most formats read nothing ahead)
        """Read the bytes of the rows that are needed next, from a remote file with few requests."""


@dataclass(frozen=True)
class UnreadShard:
    """A file that has not been read. Only its format is known."""

    path: str
    reader: type[ShardReader]


Found = tuple[Shard, bool] | UnreadShard
"""A shard with a flag that is True if its samples need not be counted, or an unread file."""


def counted(shards: Iterable[Shard]) -> Iterator[Found]:
    """Yield shards whose samples need not be counted."""
    for shard in shards:
        yield shard, True


def shard_format(name: str) -> type[ShardReader]:
    """Look up the reader of a format, in core or a plugin.

    Raises:
        UserError: If no installed package has the format.
    """
    if name in FORMATS:
        load_function(FORMATS[name])
    elif name not in ShardReader.formats:
        load_plugins()  # in a worker process
    if name not in ShardReader.formats:
        raise UserError(f"{name!r} is not a valid format; choose from {', '.join({**FORMATS, **ShardReader.formats})}")
    return ShardReader.formats[name]


def format_of_file(path: str) -> type[ShardReader] | None:
    """Find the plugin's format for the extension of a path, if there is one."""
    extension = files.without_query(path).rsplit(".", 1)[-1].lower()
    return next((reader for reader in ShardReader.formats.values() if extension in reader.extensions), None)
