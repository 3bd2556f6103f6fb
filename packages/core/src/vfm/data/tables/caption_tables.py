"""Captions without images: tables to curate before the images are downloaded, or for their texts only.

A csv, tsv or jsonl table, or a text file with a caption in each line, optionally gzipped, is converted once to parquet
shards; parquet and Arrow files are used unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vfm.data.samples.captions import field_of
from vfm.data.samples.sample import given_uid
from vfm.data.samples.shards import Found, Shard, UnreadShard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import Row
from vfm.data.tables.parquet import ParquetShard
from vfm.data.tables.table import CAPTION_COLUMNS, find_column, table_columns, table_kind, table_rows

ROWS_PER_SHARD = 100_000
ID_COLUMNS = ("uid", "url")  # copied if the table has them


def caption_spec(paths: Sequence[str], texts: dict[str, str], columns: list[str] | None) -> DatasetSpec:
    """Return the spec of a user's tables, which must all have the same columns.

    Args:
        paths: the tables.
        texts: language: column; empty: English in the first column with a usual name for captions.
        columns: column names of tables without a header.

    Raises:
        UserError: a column is missing.
    """
    path = paths[0]
    found = columns or table_columns(path)
    texts = texts or {"en": find_column(found, None, CAPTION_COLUMNS, "texts", path)}
    for source in texts.values():
        find_column(found, source.partition(".")[0], (), "texts", path)
    return DatasetSpec(texts=texts, images=False)


def caption_shards(
    directory: Path, paths: Sequence[str], spec: DatasetSpec, columns: list[str] | None
) -> tuple[DatasetSpec, Iterator[Found]]:
    """Return the spec of the shards, and the shards as `Indexing.run` takes them."""
    if table_kind(paths[0]) == "parquet":
        return spec, (UnreadShard(path, ParquetShard) for path in paths)
    # Converted once, since csv and jsonl have no random access, and gzip has none either.
    # A row that cannot be read has no caption, and is counted when the captions are read.
    rows = (row if isinstance(row, dict) else {} for path in paths for row in table_rows(path, columns))
    stored = spec.model_copy(update={"texts": {language: f"texts_{language}" for language in spec.texts}})
    return stored, ((shard, True) for shard in _write_shards(directory, rows, spec))


def _write_shards(directory: Path, rows: Iterator[Row], spec: DatasetSpec) -> Iterator[Shard]:
    directory.mkdir(parents=True, exist_ok=True)
    number = 0
    while part := list(islice(rows, ROWS_PER_SHARD)):
        columns = {f"texts_{name}": [field_of(row, source) for row in part] for name, source in spec.texts.items()}
        columns |= {name: [row.get(name) for row in part] for name in ID_COLUMNS if any(name in row for row in part)}
        columns |= {"uid": list(map(given_uid, columns["uid"]))} if "uid" in columns else {}
        table = {name: _strings(values) if name in ID_COLUMNS else _lists(values) for name, values in columns.items()}
        path = directory / f"captions-{number:05d}.parquet"
        pq.write_table(pa.table(table), path, compression="zstd", write_page_checksum=True)
        yield Shard.of(path, len(part), format="parquet")
        number += 1


def _lists(values: list[object]) -> Any:
    """Return the captions of each row, which has one or a list of them, as a list column."""
    found = [value if isinstance(value, list) else [value] for value in values]
    offsets = pa.array(accumulate(map(len, found), initial=0), pa.int32())
    return pa.ListArray.from_arrays(offsets, _strings([text for texts in found for text in texts]))


def _strings(values: list[object]) -> Any:
    """Return a string column, also of texts that are not valid UTF-8: reading them reports `wrong_encoding`."""
    raw = [value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None for value in values]
    return pc.cast(pa.array(raw, pa.binary()), options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))
