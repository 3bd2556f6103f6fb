"""Read Arrow files saved by Hugging Face's `datasets` (`save_to_disk`), with the interface of pyarrow's Parquet files.

The folder of a dataset has `state.json`, which lists its `.arrow` files in order. A folder of several splits has
`dataset_dict.json`. The package `datasets` is not needed.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa

from vfm.base import UserError
from vfm.storage import files

STATE_FILE = "state.json"
INFO_FILE = "dataset_info.json"
SPLITS_FILE = "dataset_dict.json"
ROWS_KEY = "_indices_data_files"  # used by early versions, which saved a selection of rows next to all rows
FILE_MAGIC = b"ARROW1"  # start of the format with a footer, while `datasets` writes the stream format


class ArrowFile:
    """The record batches of a file, as row groups of a `pyarrow.parquet.ParquetFile`.

    A local file is mapped into memory, so that reading a row reads only its bytes.

    Args:
        path: Path of the file.

    Raises:
        UserError: If the file is not readable as Arrow.
    """

    def __init__(self, path: str) -> None:
        try:
            if files.is_remote(path):
                source = pa.BufferReader(files.read_bytes(path))
            else:
                source = pa.memory_map(path)
            with_footer = source.read(len(FILE_MAGIC)) == FILE_MAGIC
            source.seek(0)
            reader = pa.ipc.open_file(source) if with_footer else pa.ipc.open_stream(source)
            self.schema_arrow = reader.schema
            batches = map(reader.get_batch, range(reader.num_record_batches)) if with_footer else reader
            self.batches: list[pa.RecordBatch] = list(map(_checked, batches))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a name that is not UTF-8
            if getattr(error, "errno", None) is not None:  # an error of the system, not of the file's content
                raise
            raise UserError(f"{path}: not readable as Arrow: {' '.join(str(error).split())}") from None

    @property
    def metadata(self) -> ArrowFile:
        """The numbers of rows."""
        return self

    @property
    def num_row_groups(self) -> int:
        """Number of record batches."""
        return len(self.batches)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(batch.num_rows for batch in self.batches)

    @cached_property
    def ends(self) -> list[int]:
        """Number of rows up to the end of each record batch."""
        return list(accumulate(batch.num_rows for batch in self.batches))

    def locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        """Find the record batch of a row, and the row's place in it."""
        number = bisect_right(self.ends, row)
        batch = self.batches[number]
        return batch, row - self.ends[number] + batch.num_rows

    def row_group(self, number: int) -> pa.RecordBatch:
        """Get a record batch."""
        return self.batches[number]

    def read_row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns of a record batch."""
        table = pa.Table.from_batches([self.batches[number]])
        return table if columns is None else table.select(list(columns))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns of all record batches."""
        table = pa.Table.from_batches(self.batches, self.schema_arrow)
        return table if columns is None else table.select(list(columns))

    def iter_batches(
        self, size: int, row_groups: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield record batches of at most `size` rows, by default of all row groups."""
        for number in range(self.num_row_groups) if row_groups is None else row_groups:
            yield from self.read_row_group(number, columns).to_batches(max_chunksize=size)


def open_copy(path: str, num_rows: int) -> ArrowFile:
    """Open the Arrow copy of a table.

    Args:
        path: Path of the copy.
        num_rows: Number of rows that it must have.

    Raises:
        UserError: If it is missing or damaged.
    """
    files.size_and_time(path)  # raises if it is missing
    copy = ArrowFile(path)
    if copy.num_rows < num_rows:
        raise UserError(f"{path}: expected {num_rows} rows, got {copy.num_rows}; index the data again")
    return copy


def saved_dataset(folder: str, names: Sequence[str], split: str | None = None) -> list[str] | None:
    """List the Arrow files of a saved dataset in order.

    Args:
        folder: Folder of a dataset, or of several splits.
        names: Names of the folder's files.
        split: Split to use if there are several. Default: the only split.

    Returns:
        The files. Another folder gives None.

    Raises:
        UserError: If a file that lists others is damaged, the split does not exist, or only some rows were selected.
    """
    root = folder.rstrip("/")
    if SPLITS_FILE in names:
        root = f"{root}/{_chosen_split(folder, split)}"
        names = files.names_in(root) if files.is_directory(root) else []
        if STATE_FILE not in names:
            raise UserError(f"{root}: {STATE_FILE} is missing; expected a saved dataset")
    if STATE_FILE not in names or INFO_FILE not in names:
        return None
    entries = _listed(f"{root}/{STATE_FILE}", "_data_files")
    if _listed(f"{root}/{STATE_FILE}", ROWS_KEY, default=[]):
        raise UserError(f"{root}: saved with a choice of its rows ({ROWS_KEY}): expected `flatten_indices` before")
    paths: list[str] = []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        path = files.join_inside(root, name) if isinstance(name, str) and name else None
        if path is not None:
            paths.append(path)
    if not paths or len(paths) < len(entries):
        raise UserError(f"{root}/{STATE_FILE}: expected the names of Arrow files in _data_files, got {entries!r:.80}")
    missing = files.missing(paths)
    if missing:
        raise UserError(f"{missing[0]}: no such file, which {STATE_FILE} lists")
    return paths


def _chosen_split(folder: str, split: str | None) -> str:
    root = folder.rstrip("/")
    splits = list(map(str, _listed(f"{root}/{SPLITS_FILE}", "splits")))
    if split is None and len(splits) == 1:
        return splits[0]
    if split is not None and split in splits:
        return split
    problem = f"of {len(splits)} splits" if split is None else f"without a split {split!r}"
    folders = " or ".join(f"{root}/{name}" for name in splits)
    raise UserError(f"{folder}: a saved dataset {problem}; give the folder of one, {folders}")


def _listed(path: str, key: str, default: list[Any] | None = None) -> list[Any]:
    try:
        record = json.loads(files.read_bytes(path))
        listed = record.get(key, default)
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{path}: expected JSON with a list {key!r}") from None
    if not isinstance(listed, list):
        raise UserError(f"{path}: expected JSON with a list {key!r}")
    return listed


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Check the offsets of a batch, because Arrow would follow a wrong offset out of the file.

    Raises:
        pa.ArrowInvalid: If an offset is wrong. Texts that are not UTF-8 are reported when they are read.
    """
    for column in batch.columns:
        for leaf in _leaves(column):
            try:
                leaf.validate(full=True)
            except pa.ArrowInvalid as error:
                if "UTF8" not in str(error):
                    raise
    return batch


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_struct(array.type):
        array.validate()
        for number in range(array.type.num_fields):
            yield from _leaves(array.field(number))
    else:
        yield array
