"""Read captions without images, to curate them before the images are downloaded.

A csv, tsv or jsonl table, or a text file with a caption per line, optionally gzipped, is converted once to parquet
shards. Parquet and Arrow files are used unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vfm.data.ledger.account import Account
from vfm.data.samples.caption_templates import columns_of, filled, is_template
from vfm.data.samples.captions import field_of
from vfm.data.samples.columns import column_name
from vfm.data.samples.sample import given_uid
from vfm.data.samples.shards import Found, Shard, UnreadShard, counted
from vfm.data.samples.spec import DatasetSpec
from vfm.data.samples.values import array_of
from vfm.data.tables.image_list import Row
from vfm.data.tables.parquet import ParquetShard
from vfm.data.tables.table import CAPTION_COLUMNS, find_column, placed_rows, table_columns, table_kind, unit_of_table

ROWS_PER_SHARD = 100_000  # of the order of 10 MB
ID_COLUMNS = ("uid", "url")  # columns that are copied if the table has them


def caption_spec(
    paths: Sequence[str], texts: dict[str, str], columns: list[str] | None, further: Sequence[str] = ()
) -> DatasetSpec:
    """Create the spec of a user's tables. All of them must have the same columns.

    Args:
        paths: The tables.
        texts: Column of each language. Empty: English in the first column with a usual name for captions.
        columns: Column names of tables without a header.
        further: Locations of values for filters.

    Raises:
        UserError: If a column is missing.
    """
    path = paths[0]
    names = columns or table_columns(path)
    texts = texts or {"en": find_column(names, None, CAPTION_COLUMNS, "texts", path)}
    for column in columns_of(texts.values()):
        find_column(names, column, (), "texts", path)
    for location in further:
        find_column(names, location.split(".", 1)[0], (), "columns", path)
    return DatasetSpec(texts=texts, images=False, columns=list(further))


def caption_shards(
    directory: Path,
    paths: Sequence[str],
    spec: DatasetSpec,
    columns: list[str] | None,
    accounts: list[Account],
) -> tuple[DatasetSpec, Iterator[Found]]:
    """Convert tables to shards, and return the spec of the shards and the shards for `Indexing.run`.

    Args:
        directory: Folder of the shards.
        paths: The tables.
        spec: Spec of their texts.
        columns: Column names of tables without a header.
        accounts: Receives the accounts of tables that are converted.
    """
    if table_kind(paths[0]) == "parquet":
        return spec, (UnreadShard(path, ParquetShard) for path in paths)
    # Converted once, because csv, jsonl and gzip have no random access.
    texts = {language: f"texts_{language}" for language in spec.texts}
    stored = spec.model_copy(update={"texts": texts})
    return stored, counted(_write_shards(directory, _rows(paths, columns, accounts), spec))


def _rows(paths: Sequence[str], columns: list[str] | None, accounts: list[Account]) -> Iterator[Row]:
    number = 0
    for path in paths:
        account = Account(path, unit_of_table(path), sample=number)
        accounts.append(account)
        for start, stop, row in placed_rows(path, account, columns):
            account.give(start, stop)
            account.sample += 1
            # An unreadable row has no caption, and is counted when the captions are read.
            yield row if isinstance(row, dict) else {}
        number = account.sample


def _write_shards(directory: Path, rows: Iterator[Row], spec: DatasetSpec) -> Iterator[Shard]:
    directory.mkdir(parents=True, exist_ok=True)
    number = 0
    while part := list(islice(rows, ROWS_PER_SHARD)):
        columns = {}
        names = set(chain.from_iterable(part))
        for language, source in spec.texts.items():
            columns[f"texts_{language}"] = _lists([_captions(row, source) for row in part])
        for name in ID_COLUMNS:
            if name in names:
                values = [row.get(name) for row in part]
                if name == "uid":
                    values = list(map(given_uid, values))
                columns[name] = _strings(values)
        for location in spec.columns:
            columns[column_name(location)] = array_of([_parsed(field_of(row, location)) for row in part])
        path = directory / f"captions-{number:05d}.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd", write_page_checksum=True)
        yield Shard.of(path, len(part), format="parquet")
        number += 1


def _parsed(value: object) -> object:
    """Read a number, or `true` or `false`, from a text: tables of text have no others."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return float(value)
    except ValueError:
        return value or None


def _captions(row: Row, location: str) -> object:
    if is_template(location):
        return filled(location, partial(field_of, row), {})
    return field_of(row, location)


def _lists(values: list[object]) -> Any:
    """Build a list column from the captions of each row. A row has one caption or a list."""
    captions = [value if isinstance(value, list) else [value] for value in values]
    offsets = pa.array(accumulate(map(len, captions), initial=0), pa.int32())
    return pa.ListArray.from_arrays(offsets, _strings(list(chain.from_iterable(captions))))


def _strings(values: Sequence[object]) -> Any:
    """Build a string column, also from texts that are not valid UTF-8. Reading them reports `wrong_encoding`."""
    raw = [value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None for value in values]
    return pc.cast(pa.array(raw, pa.binary()), options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))
