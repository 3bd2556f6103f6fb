"""Read the texts of a table by whole columns of its row groups."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data.samples.arrays import one_array
from vfm.data.samples.sample import given_uid
from vfm.data.samples.shards import ShardReader
from vfm.data.samples.texts import (
    OnBad,
    Rows,
    is_plain,
    is_text,
    texts_by_column,
    texts_by_sample,
    texts_schema,
    uids_of,
)
from vfm.data.tables.parquet_files import DAMAGE

ROWS_AT_A_TIME = 1 << 18  # rows of a row group whose texts are converted together


class ColumnTexts(ShardReader):
    """A shard whose texts are columns of row groups.

    Attributes:
        file: The file, with the interface of `pyarrow.parquet.ParquetFile`.
        texts_only: Columns of a sample without its image.
        ends: Number of rows up to the end of each row group.
    """

    file: Any
    texts_only: list[str]
    ends: NDArray[np.int64]

    @abstractmethod
    def _name(self, row: int) -> str:
        """Build the key of a row that has none."""

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """Read the texts of ascending rows in the schema `texts_schema`, by column if the types are plain."""
        read = partial(self.read, with_image=False)
        needed = [name for name in self.texts_only if name != "url"]
        spec = self.spec
        if not spec.texts or spec.label_key or (spec.columns and spec.images) or not self._has_plain(needed):
            return texts_by_sample(read, rows, on_bad)
        parts = []
        for group, begin, inside in self._rows_by_group(rows):
            try:
                table = self._read_until(int(inside[-1]) - begin, group, needed)
            except DAMAGE:
                parts.append(texts_by_sample(read, inside, on_bad))  # reports each row with its row group
                continue
            for first in range(0, len(inside), ROWS_AT_A_TIME):
                some = inside[first : first + ROWS_AT_A_TIME]
                part = _rows(table, some - begin)
                columns: dict[str, Any] = {}
                for name in needed:
                    columns.update(_leaves(name, one_array(part[name])))
                texts = {language: columns[source] for language, source in self.spec.texts.items()}
                parts.append(texts_by_column(read, some, texts, columns, partial(self._uids, columns, some), on_bad))
        # An empty table would be a chunk of its own, and readers copy a column of several chunks.
        return pa.concat_tables(parts) if parts else texts_schema().empty_table()

    def _read_until(self, last: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Read columns of a row group, or only its first rows if the last row is among them.

        Damage behind these is then not found.
        """
        if 8 * last < self.file.metadata.row_group(group).num_rows:
            batches: list[pa.RecordBatch] = []
            for batch in self.file.iter_batches(last + 1, row_groups=[group], columns=columns):
                batches.append(batch)
                if sum(map(len, batches)) > last:
                    return pa.Table.from_batches(batches)
        return self.file.read_row_group(group, columns=columns)

    def _rows_by_group(self, rows: Rows) -> Iterator[tuple[int, int, Rows]]:
        """Yield the number, the first row and the selected rows of each row group that has some of the rows."""
        for group, end in enumerate(self.ends.tolist()):
            begin = end - self.file.metadata.row_group(group).num_rows
            inside = rows[slice(*np.searchsorted(rows, [begin, end]))]
            if len(inside):
                yield group, begin, inside

    def _has_plain(self, names: Sequence[str]) -> bool:
        """Check whether `texts_by_column` supports these columns and fields of structs, and has all captions."""
        locations = set()
        for name in names:
            kind = self.file.schema_arrow.field(name).type
            if pa.types.is_struct(kind) and name in ("key", "uid"):  # no name of a sample
                return False
            for location, leaf in _leaves(name, pa.array([], kind)):
                is_uid = location == "uid" and pa.types.is_fixed_size_binary(leaf.type)
                if location in locations or not (is_uid or is_plain(leaf.type)):
                    return False
                locations.add(location)
        return set(self.spec.texts.values()) <= locations

    def _uids(self, columns: Mapping[str, Any], rows: Rows, good: NDArray[np.bool_]) -> Any:
        """Compute the uids of the rows in a mask from the column `uid`, or from the keys."""
        # As in `read`, a uid is a text, an integer or bytes. An empty one, or another type of value, counts as missing.
        uids = columns["uid"] if "uid" in columns else pa.nulls(len(good))
        if not good.all():
            uids = uids.filter(pa.array(good))
        if pa.types.is_dictionary(uids.type):
            uids = uids.dictionary_decode()
        if pa.types.is_fixed_size_binary(uids.type):
            uids = pa.array(map(given_uid, uids.to_pylist()), pa.string())
        if is_text(uids.type) or pa.types.is_integer(uids.type):
            uids = uids.cast(pa.string())
        else:
            uids = pa.nulls(len(uids), pa.string())
        empty = pc.equal(uids, "")
        if pc.any(empty).as_py():  # replacing copies all
            uids = pc.if_else(empty, None, uids)
        if not uids.null_count:
            return uids
        lacking = good.nonzero()[0][uids.is_null().to_numpy(zero_copy_only=False)]
        has_keys = "key" in columns and not self.spec.keys_repeat
        keys: list[object] = [None] * len(lacking)
        if has_keys:
            keys = columns["key"].take(lacking).to_pylist()
        names = []
        for row, key in zip(rows[lacking].tolist(), keys, strict=True):
            names.append(self._name(row) if key is None else str(key))
        return pc.replace_with_mask(uids, uids.is_null(), uids_of(names))


def _rows(table: pa.Table, rows: Rows) -> pa.Table:
    """Take ascending rows of a table, without a copy if they are adjacent."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return table.slice(rows[0], len(rows))
    return table.take(rows)


def _leaves(location: str, column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """Yield a column with its location, or each field of a column of structs. Fields of a missing struct are null."""
    if not pa.types.is_struct(column.type):
        yield location, column
        return
    for index, field in enumerate(column.type):
        inner = field.name.replace(".", "\0")  # a location with a dot refers to a field of a struct
        yield from _leaves(f"{location}.{inner}", pc.struct_field(column, [index]))
