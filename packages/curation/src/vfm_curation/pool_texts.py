"""Texts and URLs of a pool's shards, and texts cut for display."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data import Source, one_array, texts_schema
from vfm.plugin import UserError
from vfm_curation.summaries import TaskSummary

OnBad = Callable[[str, str], None]  # called with (reason, where) for a sample that cannot be used
MAX_SHOWN = 120  # characters of an example


def texts_of(source: Source, shard: int, *, on_bad: OnBad | None = None) -> pa.Table:
    """Read the texts of a shard as `Source.texts_of_shard` does.

    Args:
        source: The pool.
        shard: Number of the shard.
        on_bad: Called with (reason, where) for texts that cannot be read.

    Returns:
        Table with the columns row, uid, language, text_index and text.

    Raises:
        UserError: If the shard's parquet file was damaged after its pool was made. (A file whose footer is damaged is
            rejected when the pool is made.)
    """
    with _naming_damage(source, shard):
        return source.texts_of_shard(shard, on_bad=on_bad)


def texts_of_rows(source: Source, shard: int, rows: NDArray[np.int64]) -> pa.Table:
    """Read all texts of some rows of a shard, ascending, whether a subset has them or not."""
    with _naming_damage(source, shard):
        return source.index.open(shard).texts(rows, lambda reason, where: None)


@contextmanager
def _naming_damage(source: Source, shard: int) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # an error of the system does not mean that the file is damaged
            raise
        path, reason = source.index.shards[shard].path, " ".join(str(error).split())
        raise UserError(f"{path}: damaged; write it again or make the pool without it: {reason}") from None


def texts_or_lost(source: Source, shard: int, summary: TaskSummary, values: Sequence[str] = ()) -> pa.Table:
    """Read the texts of a shard. If it cannot be read, count its samples as lost and return an empty table.

    Args:
        source: The pool.
        shard: Number of the shard.
        summary: Counts bad and lost samples.
        values: The user's own columns to read too. A column NAME becomes `stored.NAME`.
    """
    num_samples = int(source.shard_sizes[shard])
    if num_samples:  # a shard without samples, perhaps of a subset, need not exist
        bad: list[tuple[str, str]] = []  # not counted if the shard is lost
        try:
            texts = texts_of(source, shard, on_bad=lambda reason, where: bad.append((reason, where)))
            texts = _with_values(texts, source, shard, values)
        except UserError as error:
            summary.lose(shard, num_samples, str(error))
        else:
            for reason, where in bad:
                summary.skip(reason, where)
            return texts
    return _with_values(texts_schema().empty_table(), source, shard, values)


def _with_values(texts: pa.Table, source: Source, shard: int, names: Sequence[str]) -> pa.Table:
    """Append the user's own columns to the texts of a shard, which is not opened if there are no texts."""
    if not names:
        return texts
    rows = texts["row"].to_numpy().astype(np.int64)
    if not len(rows):
        values = pa.table({name: pa.nulls(0) for name in names})
    else:
        with _naming_damage(source, shard):
            values = _values(source, shard, rows, names)
    for name in names:
        texts = texts.append_column(f"stored.{name}", values[name])
    return texts


def _values(source: Source, shard: int, rows: NDArray[np.int64], names: Sequence[str]) -> pa.Table:
    """Read the user's own columns for the row of each text. A row may repeat."""
    reader = source.index.open(shard)
    if (rows[1:] > rows[:-1]).all():
        return reader.values(rows, names)
    distinct, at = np.unique(rows, return_inverse=True)
    return reader.values(distinct, names).take(at)


def encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Encode a column as a dictionary, for a single value three times as fast as by hashing all."""
    if not len(column) or column.null_count or not pc.all(pc.equal(column, column[0])).as_py():
        return one_array(column).dictionary_encode()
    codes = pa.array(np.zeros(len(column), np.int32))
    return pa.DictionaryArray.from_arrays(codes, one_array(column[:1]))


def shortened(text: str) -> str:
    """Cut a text with dots if it is too long to show."""
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN - 3]}..."
