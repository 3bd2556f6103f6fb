"""Read the texts of a shard as one table: by whole columns if the shard has columns, otherwise sample by sample.

The column path handles rows that are clearly good. Other rows are read as samples, so that both paths report the same
bad samples for the same reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as is_
from numpy.typing import NDArray

from vfm.data.samples.captions import MAX_CAPTION_BYTES
from vfm.data.samples.sample import BadSample, Sample, raise_if_unreachable, uid_of

# N rows, M texts

Rows = NDArray[np.int64]
OnBad = Callable[[str, str], None]  # called with (reason, where) of an unusable sample
FIRST_BEYOND_ASCII = 128
ReadTexts = Callable[[int], Sample]  # reads a row's sample without its image, or raises BadSample


def texts_schema() -> pa.Schema:
    """Define the schema of texts.

    The columns are row, uid, language, text_index and text. text_index is the index among the sample's texts in that
    language.
    """
    return pa.schema(
        {"row": pa.int32(), "uid": pa.string(), "language": pa.string(), "text_index": pa.int32(), "text": pa.string()}
    )


def texts_by_sample(read: ReadTexts, rows: Rows, on_bad: OnBad) -> pa.Table:
    """Read texts sample by sample into a table of `texts_schema`.

    It is ordered by row, language and index.

    Args:
        read: Reads the texts of a sample.
        rows: Rows to read.
        on_bad: Called with (reason, where) for samples that cannot be read.

    Raises:
        UserError: If a remote sample cannot be reached.
    """
    records: list[tuple[int, str, str, int, str]] = []
    for row in rows.tolist():
        try:
            sample = read(row)
        except BadSample as bad:
            raise_if_unreachable(bad)
            on_bad(bad.reason, bad.where)
            continue
        for language, texts in sample.texts.items():
            records += [(row, sample.uid, language, index, text) for index, text in enumerate(texts)]
    columns: list[Sequence[object]] = [()] * 5
    if records:
        columns = list(zip(*records, strict=True))
    schema = texts_schema()
    return pa.table(list(map(pa.array, columns, schema.types)), schema=schema)


def texts_by_column(
    read: ReadTexts,
    rows: Rows,
    texts: Mapping[str, pa.Array],
    columns: Mapping[str, pa.Array],
    uids: Callable[[NDArray[np.bool_]], pa.Array],
    on_bad: OnBad,
) -> pa.Table:
    """Compute the table of `texts_by_sample(read, rows, on_bad)` from whole columns.

    Args:
        read: Reads a row that is not clearly good.
        rows: Numbers of the rows in the columns, (N,).
        texts: Column of each language, of a type that `is_plain`, (N,).
        columns: All columns that `read` uses, (N,). They must be plain, because text in any of them must be UTF-8.
        uids: Computes the uids of the rows in a mask (N,).
        on_bad: Called for each bad sample.
    """
    # 1. Find rows that are clearly good: all text is UTF-8, no caption is too long or has a NUL, and at least one
    # caption is not empty.
    good = np.ones(len(rows), bool)
    for column in map(_TextColumn.of, columns.values()):
        good[column.parents[_not_utf8(column.values)]] = False
    captions = {language: _TextColumn.of(column).of_rows(good).trimmed() for language, column in texts.items()}
    for column in captions.values():
        good[column.parents[(column.sizes > MAX_CAPTION_BYTES) | _with_nul(column.values)]] = False
    captions = {language: column.of_rows(good) for language, column in captions.items()}

    # 2. Their texts as columns, language by language.
    good[:] = False
    parents = []
    languages = []
    indices = []
    values = []
    for language, column in captions.items():
        good[column.parents] = True
        parents.append(column.parents)
        languages.append(pa.repeat(language, len(column.values)))
        indices.append(column.text_indices())
        values.append(column.values)
    numbers = np.concatenate(parents)
    # cumsum maps a good row to its position among the good uids.
    uid = _taken(uids(good), numbers if good.all() else np.cumsum(good)[numbers] - 1)
    arrays = [
        pa.array(rows[numbers].astype(np.int32)),
        uid,
        _concatenated(languages),
        pa.array(np.concatenate(indices)),
        _concatenated(values),
    ]
    table = pa.table(arrays, schema=texts_schema())
    # 3. All other rows are read as samples. The sort is stable, so a row's languages and indices keep their order.
    rest = texts_by_sample(read, rows[~good], on_bad)
    if len(captions) > 1 or len(rest):
        table = pa.concat_tables([table, rest])
        table = table.take(np.argsort(table["row"].to_numpy(), kind="stable"))
    return table


def _taken(column: pa.Array, positions: Rows) -> pa.Array:
    """Take the values at some positions, without a copy if these are all of them in their order."""
    if len(positions) == len(column) and (positions == np.arange(len(column))).all():
        return column
    return column.take(pa.array(positions))


def _concatenated(arrays: Sequence[pa.Array]) -> pa.Array:
    """Concatenate arrays, without a copy of a single one."""
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def uids_of(keys: Iterable[object]) -> pa.Array:
    """Compute the uids of keys by `uid_of`."""
    return pa.array([uid_of(str(key)) for key in keys], pa.string())


def is_plain(kind: pa.DataType) -> bool:
    """Check whether `texts_by_column` supports a column's type.

    It supports strings, lists and dictionaries of strings, and types without text.
    """
    if is_.is_dictionary(kind):
        return is_text(kind.value_type)
    return is_text(kind) or is_.is_primitive(kind) or is_.is_null(kind) or (_is_list(kind) and is_text(kind.value_type))


def is_text(kind: pa.DataType) -> bool:
    """Check whether a column contains strings."""
    return bool(is_.is_string(kind) or is_.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(is_.is_list(kind) or is_.is_large_list(kind))


@dataclass(frozen=True)
class _TextColumn:
    """The texts of a column, (M,), and the row of each text, (M,), ascending."""

    values: pa.Array
    parents: Rows

    @classmethod
    def of(cls, column: pa.Array) -> _TextColumn:
        if is_.is_dictionary(column.type):
            column = column.dictionary_decode()
        if _is_list(column.type):
            values = pc.list_flatten(column)
            parents = pc.list_parent_indices(column).to_numpy()
        elif is_text(column.type):
            values = column
            parents = np.arange(len(column))
        else:
            values = pa.array([], pa.string())
            parents = np.arange(0)
        if not values.null_count:  # the usual case, without a copy
            return cls(values.cast(pa.string()), parents)
        valid = values.is_valid()
        return cls(values.filter(valid).cast(pa.string()), parents[valid.to_numpy(zero_copy_only=False)])

    @property
    def sizes(self) -> Rows:
        """Size of each text in bytes."""
        sizes: Rows = pc.binary_length(self.values).to_numpy()
        return sizes

    def of_rows(self, good: NDArray[np.bool_]) -> _TextColumn:
        """Select the texts of the rows in a mask."""
        return self if good.all() else self._filter(good[self.parents])

    def trimmed(self) -> _TextColumn:
        """Strip whitespace around the texts, and drop empty texts."""
        if not _may_begin_or_end_with_space(self.values):
            return self
        trimmed = _TextColumn(pc.utf8_trim_whitespace(self.values), self.parents)
        return trimmed._filter(trimmed.sizes > 0)

    def text_indices(self) -> NDArray[np.int32]:
        """Compute the index of each text among its row's texts."""
        if (self.parents[1:] > self.parents[:-1]).all():
            return np.zeros(len(self.parents), np.int32)
        starts = np.flatnonzero(np.diff(self.parents, prepend=-1))
        counts = np.diff(starts, append=len(self.parents))
        return (np.arange(len(self.parents)) - np.repeat(starts, counts)).astype(np.int32)

    def _filter(self, mask: NDArray[np.bool_]) -> _TextColumn:
        if mask.all():
            return self
        return _TextColumn(self.values.filter(pa.array(mask)), self.parents[mask])


def _may_begin_or_end_with_space(values: pa.Array) -> bool:
    """Check whether any text is empty, or begins or ends with a byte that may be of a space. Stripping copies all."""
    if not len(values):
        return False
    ends, data = _ends_and_bytes(values)
    if bool((ends[1:] == ends[:-1]).any()):
        return True
    for places in (ends[:-1], ends[1:] - 1):
        outer = data[places]
        # Spaces beyond ASCII have bytes of 128 or more.
        if outer.min() <= ord(" ") or outer.max() >= FIRST_BEYOND_ASCII:
            return True
    return False


def _ends_and_bytes(values: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """View the buffers of strings: text i is data[ends[i]:ends[i + 1]]."""
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    return ends, np.frombuffer(data or b"", np.uint8)


def _is_ascii(values: pa.Array) -> bool:
    """Check whether all bytes are ASCII and the offsets ascend within them, at ten times the speed of Arrow's check."""
    ends, data = _ends_and_bytes(values)
    if ends[0] < 0 or ends[-1] > len(data) or (ends[1:] < ends[:-1]).any():
        return False
    # Of a slice only its own bytes, since bisection checks many slices of a large buffer.
    return bool(data[ends[0] : ends[-1]].max(initial=0) < FIRST_BEYOND_ASCII)


def _not_utf8(values: pa.Array) -> list[int]:
    """Find texts that are not UTF-8 by bisection, because neither parquet writers nor readers check this."""
    if len(values) and _is_ascii(values):
        return []
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return [0]
        middle = len(values) // 2
        return [*_not_utf8(values[:middle]), *(middle + index for index in _not_utf8(values[middle:]))]
    return []


def _with_nul(values: pa.Array) -> NDArray[np.bool_]:
    """Find texts that have a NUL.

    Usually there are none in the whole buffer. This check is 50 times as fast.
    """
    data = values.buffers()[2]
    if data is None or np.frombuffer(data, np.uint8).all():
        return np.zeros(len(values), bool)
    mask: NDArray[np.bool_] = pc.match_substring(values, "\0").to_numpy(zero_copy_only=False)
    return mask
