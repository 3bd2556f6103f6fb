"""Arrow files, as Hugging Face's `datasets` saves them (`save_to_disk`), read as pyarrow reads Parquet files.

A folder of such a dataset has `state.json`, which lists its `.arrow` files in their order; a folder of several splits
has `dataset_dict.json`. The package `datasets` is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from vfm.base import UserError
from vfm.storage import files

STATE_FILE, INFO_FILE, SPLITS_FILE = "state.json", "dataset_info.json", "dataset_dict.json"
ROWS_KEY = "_indices_data_files"  # of early versions, which saved a choice of rows beside all of them
FILE_MAGIC = b"ARROW1"  # of the format with a footer; `datasets` writes the stream format


class ArrowFile:
    """The record batches of a file as the row groups of a `pyarrow.parquet.ParquetFile`.

    A local file is mapped into memory, so that a row costs no more than its bytes.

    Args:
        path: of the file.

    Raises:
        UserError: it is not readable as Arrow.
    """

    def __init__(self, path: str) -> None:
        try:
            source = pa.BufferReader(files.read_bytes(path)) if files.is_remote(path) else pa.memory_map(path)
            with_footer = source.read(len(FILE_MAGIC)) == FILE_MAGIC
            source.seek(0)
            reader = pa.ipc.open_file(source) if with_footer else pa.ipc.open_stream(source)
            self.schema_arrow = reader.schema
            batches = map(reader.get_batch, range(reader.num_record_batches)) if with_footer else reader
            self.batches: list[pa.RecordBatch] = [_checked(batch) for batch in batches]
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

    def row_group(self, number: int) -> pa.RecordBatch:
        """Return a record batch."""
        return self.batches[number]

    def read_row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns of a record batch."""
        table = pa.Table.from_batches([self.batches[number]])
        return table if columns is None else table.select(list(columns))

    def iter_batches(
        self, size: int, row_groups: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield record batches of at most `size` rows."""
        for number in row_groups:
            yield from self.read_row_group(number, columns).to_batches(max_chunksize=size)


def saved_dataset(folder: str, names: Sequence[str], split: str | None = None) -> list[str] | None:
    """Return the Arrow files of a saved dataset in their order; None if the folder has none.

    Args:
        folder: of a dataset, or of several splits.
        names: names of the folder's files.
        split: the one of several splits; None: the only one.

    Raises:
        UserError: a file that lists them is damaged, there are other splits, or a choice of rows beside them.
    """
    root = folder.rstrip("/")
    if SPLITS_FILE in names:
        splits = [str(name) for name in _listed(f"{root}/{SPLITS_FILE}", "splits")]
        chosen = splits[0] if split is None and len(splits) == 1 else split
        if chosen not in splits:
            what = f"of {len(splits)} splits" if split is None else f"without a split {split!r}"
            own = " or ".join(f"{root}/{name}" for name in splits)
            raise UserError(f"{folder}: a saved dataset {what}; give the folder of one, {own}")
        root = f"{root}/{chosen}"
        names = files.names_in(root) if files.is_directory(root) else []
        if STATE_FILE not in names:
            raise UserError(f"{root}: {STATE_FILE} is missing; expected a saved dataset")
    if STATE_FILE not in names or INFO_FILE not in names:
        return None
    listed = _listed(f"{root}/{STATE_FILE}", "_data_files")
    if _listed(f"{root}/{STATE_FILE}", ROWS_KEY, default=[]):
        raise UserError(f"{root}: saved with a choice of its rows ({ROWS_KEY}): expected `flatten_indices` before")
    found = [one.get("filename") if isinstance(one, dict) else None for one in listed]
    inside = [files.join_inside(root, name) if isinstance(name, str) and name else None for name in found]
    if not inside or None in inside:
        raise UserError(f"{root}/{STATE_FILE}: expected the names of Arrow files in _data_files, got {listed!r:.80}")
    paths = [path for path in inside if path]
    if missing := files.missing(paths):
        raise UserError(f"{missing[0]}: no such file, which {STATE_FILE} lists")
    return paths


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
    """Return the batch; its offsets are checked, since a wrong one would be followed out of the file.

    Raises:
        pa.ArrowInvalid: an offset is wrong. A text that is not UTF-8 is left to whoever reads it.
    """
    for leaf in (leaf for column in batch.columns for leaf in _leaves(column)):
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
