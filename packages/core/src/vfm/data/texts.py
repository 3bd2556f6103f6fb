"""The texts of a shard as one table: a column at a time where they lie in columns, sample by sample elsewhere.

The first way takes the rows that are plainly good. Any other is read as a sample, so that what is bad is told in the
same words and the two ways cannot come to differ in what they call bad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vfm.data.captions import MAX_CAPTION_BYTES
from vfm.data.sample import BadSample, Sample, uid_of

if TYPE_CHECKING:
    import pyarrow as pa

# N rows, M texts

Rows = NDArray[np.int64]
OnBad = Callable[[str, str], None]  # told (reason, where) of a sample that cannot be used
ReadTexts = Callable[[int], Sample]  # a row's sample without its image; raises BadSample


def texts_schema() -> pa.Schema:
    """row, uid, language, text_index (place among the sample's texts of that language), text."""
    import pyarrow as pa

    return pa.schema(
        {"row": pa.int32(), "uid": pa.string(), "language": pa.string(), "text_index": pa.int32(), "text": pa.string()}
    )


def texts_by_sample(read: ReadTexts, rows: Rows, on_bad: OnBad) -> pa.Table:
    """The texts of samples read one by one, as `texts_schema` says; in the order of rows, languages, places."""
    import pyarrow as pa

    found: list[tuple[int, str, str, int, str]] = []
    for row in rows.tolist():
        try:
            sample = read(row)
        except BadSample as bad:
            on_bad(bad.reason, bad.where)
            continue
        for language, texts in sample.texts.items():
            found += [(row, sample.uid, language, place, text) for place, text in enumerate(texts)]
    columns: list[Sequence[object]] = list(zip(*found, strict=True)) if found else [()] * 5
    schema = texts_schema()
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def texts_by_column(
    read: ReadTexts,
    rows: Rows,
    texts: Mapping[str, pa.Array],
    columns: Mapping[str, pa.Array],
    uids: Callable[[NDArray[np.bool_]], pa.Array],
    on_bad: OnBad,
) -> pa.Table:
    """The table of `texts_by_sample(read, rows, on_bad)`, from whole columns.

    Args:
        read: reads a row that is not plainly good.
        rows: numbers of the rows that the columns hold, (N,).
        texts: by language, a column whose type `is_plain`, (N,).
        columns: all that `read` reads of a row, each plain: text in any of them must be UTF-8, (N,).
        uids: the uids of the rows in a mask (N,).
        on_bad: told of bad samples.
    """
    import pyarrow as pa

    good = np.ones(len(rows), bool)
    for column in map(_Texts.of, columns.values()):
        good[column.parents[_not_utf8(column.values)]] = False
    found = {language: _Texts.of(column).of_rows(good).trimmed() for language, column in texts.items()}
    for column in found.values():
        good[column.parents[column.sizes > MAX_CAPTION_BYTES]] = False
    found = {language: column.of_rows(good) for language, column in found.items()}
    good[:] = False
    for column in found.values():
        good[column.parents] = True  # a text is left

    numbers = np.concatenate([column.parents for column in found.values()])
    uid = uids(good).take(pa.array(np.cumsum(good)[numbers] - 1))
    language = pa.concat_arrays([pa.repeat(name, len(column.values)) for name, column in found.items()])
    places = np.concatenate([column.places() for column in found.values()])
    text = pa.concat_arrays([column.values for column in found.values()])
    arrays = [pa.array(rows[numbers].astype(np.int32)), uid, language, pa.array(places), text]
    table = pa.table(arrays, schema=texts_schema())
    rest = texts_by_sample(read, rows[~good], on_bad)
    if len(found) > 1 or len(rest):
        table = pa.concat_tables([table, rest])
        table = table.take(np.argsort(table["row"].to_numpy(), kind="stable"))
    return table


def uids_of(keys: Iterable[object]) -> pa.Array:
    """The uids that keys give, as `uid_of` does."""
    import pyarrow as pa

    return pa.array([uid_of(str(key)) for key in keys], pa.string())


def is_plain(kind: pa.DataType) -> bool:
    """Whether `texts_by_column` knows a column's type: strings, lists of them, or what holds no text at all."""
    import pyarrow.types as is_

    return is_text(kind) or is_.is_primitive(kind) or is_.is_null(kind) or (_is_list(kind) and is_text(kind.value_type))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings."""
    import pyarrow.types as is_

    return bool(is_.is_string(kind) or is_.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    return bool(is_.is_list(kind) or is_.is_large_list(kind))


@dataclass(frozen=True)
class _Texts:
    """The texts of a column, (M,), and the place of each one's row, (M,), ascending."""

    values: pa.Array
    parents: Rows

    @classmethod
    def of(cls, column: pa.Array) -> _Texts:
        import pyarrow as pa
        import pyarrow.compute as pc

        if _is_list(column.type):
            values, parents = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
        elif is_text(column.type):
            values, parents = column, np.arange(len(column))
        else:
            values, parents = pa.array([], pa.string()), np.arange(0)
        there = values.is_valid()
        return cls(values.filter(there).cast(pa.string()), parents[there.to_numpy(zero_copy_only=False)])

    @property
    def sizes(self) -> Rows:
        """Bytes of each text."""
        import pyarrow.compute as pc

        sizes: Rows = pc.binary_length(self.values).to_numpy()
        return sizes

    def of_rows(self, good: NDArray[np.bool_]) -> _Texts:
        """Those of the rows in a mask."""
        return self._filter(good[self.parents])

    def trimmed(self) -> _Texts:
        """Without space around them, and without those that have nothing else."""
        import pyarrow.compute as pc

        trimmed = _Texts(pc.utf8_trim_whitespace(self.values), self.parents)
        return trimmed._filter(trimmed.sizes > 0)

    def places(self) -> NDArray[np.int32]:
        """Of each text among its row's."""
        starts = np.flatnonzero(np.diff(self.parents, prepend=-1))
        counts = np.diff(starts, append=len(self.parents))
        return (np.arange(len(self.parents)) - np.repeat(starts, counts)).astype(np.int32)

    def _filter(self, mask: NDArray[np.bool_]) -> _Texts:
        import pyarrow as pa

        return self if mask.all() else _Texts(self.values.filter(pa.array(mask)), self.parents[mask])


def _not_utf8(values: pa.Array) -> list[int]:
    """Places of the texts that are no UTF-8, by halves: parquet's writers do not check, nor does its reader."""
    import pyarrow as pa

    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return [0]
        middle = len(values) // 2
        return [*_not_utf8(values[:middle]), *(middle + place for place in _not_utf8(values[middle:]))]
    return []
