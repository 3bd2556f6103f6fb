"""The addresses of a shard's images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.data import BadSample, Source
from vfm.data.index import ShardReader
from vfm.data.parquet import ParquetShard
from vfm.data.texts import is_text


def urls_of_rows(source: Source, shard: int, rows: NDArray[np.integer]) -> pa.Array:
    """The addresses of a shard's rows, strings, null where there is none."""
    reader = source.index.open(shard)
    if not isinstance(reader, ParquetShard):
        return pa.array(_one_by_one(reader, rows), pa.string())
    schema = reader.file.schema_arrow
    if "url" not in schema.names or not is_text(schema.field("url").type):
        return pa.nulls(len(rows), pa.string())
    return reader.file.read(columns=["url"])["url"].combine_chunks().take(pa.array(rows)).cast(pa.string())


def _one_by_one(reader: ShardReader, rows: NDArray[np.integer]) -> Iterator[str | None]:
    for row in rows.tolist():
        try:
            yield reader.read(row, with_image=False).url
        except BadSample:
            yield None
