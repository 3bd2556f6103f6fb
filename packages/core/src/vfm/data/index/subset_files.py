"""The files of a curated subset: one parquet file for each shard of its pool, and a small index of them.

    subset/NNNNNNNN.parquet   a row for each text of the shard that matched or passed, kept or not
    subset_index.parquet      shard, language, samples, kept_samples, texts, kept_texts

The index has a row for each shard that has a text, with a null language, and one for each language of its texts. A
reader that has the index opens only the shards that it needs.

A uid of 32 hexadecimal digits is stored as 16 bytes if all uids of the file are such; other uids are stored as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vfm.base import UserError
from vfm.storage.store_files import open_parquet_file, read_parquet, reading

SUBSET_FOLDER = "subset"
SUBSET_INDEX = "subset_index.parquet"
FEW_VALUES = ["language", "text_index"]  # columns with few distinct values
_UID_BYTES = 16


def subset_schema() -> Any:
    """Return the schema of a subset in memory: one row for each text that matched or passed, kept or not.

    Rows are sorted by (shard, row, language, text_index). shard and row locate the sample in the pool's index, uid
    identifies it, language and text_index select one of its texts, probability is the chance with which the text is
    kept, and kept is the result of the draw: a fixed subset uses the kept rows, `sampler: balanced` draws again from
    all rows.
    """
    return pa.schema(
        {
            "shard": pa.int32(),
            "row": pa.int32(),
            "uid": pa.string(),
            "language": pa.string(),
            "text_index": pa.int32(),
            "probability": pa.float32(),
            "kept": pa.bool_(),
        }
    )


def index_schema() -> Any:
    """Return the schema of `subset_index.parquet`; the first row of a shard, with a null language, is its total."""
    counts = dict.fromkeys(("samples", "kept_samples", "texts", "kept_texts"), pa.int64())
    return pa.schema({"shard": pa.int32(), "language": pa.string(), **counts})


def stored_subset(table: Any) -> Any:
    """Return the rows of one shard as its file has them: without the column `shard`, with packed uids."""
    table = table.select(subset_schema().names[1:])
    return table.set_column(table.schema.get_field_index("uid"), "uid", packed_uids(table["uid"]))


def subset_index_rows(shard: int, table: Any) -> list[dict[str, Any]]:
    """Return the rows of the index for one shard's table: none if it has no text."""
    if not len(table):
        return []
    languages = sorted(table["language"].unique().to_pylist())
    if len(languages) == 1:
        total = _counted(shard, None, table)
        return [total, total | {"language": languages[0]}]
    parts = (table.filter(pc.equal(table["language"], language)) for language in languages)
    named = [_counted(shard, language, part) for language, part in zip(languages, parts, strict=True)]
    return [_counted(shard, None, table), *named]


def _counted(shard: int, language: str | None, table: Any) -> dict[str, Any]:
    rows, kept = table["row"].to_numpy(), table["kept"].to_numpy()
    return {
        "shard": shard,
        "language": language,
        "samples": _distinct(rows),
        "kept_samples": _distinct(rows[kept]),
        "texts": len(rows),
        "kept_texts": int(kept.sum()),
    }


def _distinct(ascending: Any) -> int:
    return int(np.count_nonzero(np.diff(ascending))) + 1 if len(ascending) else 0


def write_subset_index(directory: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the index of the shards' files: the `subset_index_rows` of all shards, in any order."""
    ordered = sorted(rows, key=lambda row: (row["shard"], row["language"] or ""))
    table = pa.Table.from_pylist(ordered, index_schema())
    pq.write_table(table, directory / SUBSET_INDEX, compression="zstd", write_page_checksum=True)


def write_subset(directory: Path, table: Any) -> None:
    """Write a subset from one table in `subset_schema`, sorted by shard."""
    (directory / SUBSET_FOLDER).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for shard in table["shard"].unique().to_pylist():
        part = table.filter(pc.equal(table["shard"], shard))
        rows += subset_index_rows(shard, part)
        pq.write_table(
            stored_subset(part),
            subset_file(directory, shard),
            compression="zstd",
            use_dictionary=FEW_VALUES,
            write_page_checksum=True,
        )
    write_subset_index(directory, rows)


def subset_file(directory: Path, shard: int) -> Path:
    """Return the path of a shard's file in the folder of a subset."""
    return directory / SUBSET_FOLDER / f"{shard:08d}.parquet"


def read_subset_index(directory: Path) -> Any:
    """Return the index of a subset, in `index_schema`.

    Raises:
        UserError: it is missing or damaged.
    """
    file = directory / SUBSET_INDEX
    if (directory / "subset.parquet").is_file() and not file.is_file():
        raise UserError(f"{directory}: a subset of an older version of vfm, in one file; curate again")
    if not file.is_file():
        raise UserError(f"{directory}: {SUBSET_INDEX} is missing; expected a curated subset")
    return read_parquet(file, index_schema().names)


def read_subset_shard(directory: Path, shard: int, columns: Sequence[str] | None = None) -> Any:
    """Return rows of one shard in `subset_schema`, or some of its columns; the uids are text again.

    Raises:
        UserError: the file is missing or damaged, lacks a column, or is not sorted by row.
    """
    path, names = subset_file(directory, shard), [name for name in columns or subset_schema().names if name != "shard"]
    with open_parquet_file(path) as file, reading(path, "a curated subset"):
        if missing := set(names) - set(file.schema_arrow.names):
            raise UserError(f"{path}: no column '{min(missing)}'; curate again with this version of vfm")
        table = file.read(names)
    if "uid" in names:
        table = table.set_column(names.index("uid"), "uid", unpacked_uids(table["uid"]))
    if "row" in names and (np.diff(table["row"].to_numpy()) < 0).any():
        raise UserError(f"{path}: not sorted by row")
    if columns is None or "shard" in columns:
        table = table.append_column("shard", pa.array(np.full(len(table), shard, np.int32)))
    return table.select(columns or subset_schema().names)


def read_subset(directory: Path, columns: Sequence[str] | None = None) -> Any:
    """Return all rows of a subset as one table; for a subset that fits into memory.

    Raises:
        UserError: a file is missing or damaged.
    """
    schema = pa.schema([subset_schema().field(name) for name in columns or subset_schema().names])
    return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in _shards(directory, columns))])


def _shards(directory: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    for shard in read_subset_index(directory)["shard"].unique().to_pylist():
        yield read_subset_shard(directory, shard, columns)


def packed_uids(uids: Any) -> Any:
    """Return uids as 16 bytes each if all are 32 lower-case hexadecimal digits, else the strings unchanged."""
    uids = uids.combine_chunks() if isinstance(uids, pa.ChunkedArray) else uids
    sizes = pc.min_max(pc.binary_length(uids)).as_py().values()
    if uids.null_count or uids.type != pa.string() or set(sizes) != {2 * _UID_BYTES}:
        return uids
    _, offsets, data = uids.buffers()
    first = int(np.frombuffer(offsets, np.int32)[uids.offset])
    text = bytes(memoryview(data)[first : first + 2 * _UID_BYTES * len(uids)])
    try:
        binary = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return uids
    if binary.hex().encode() != text:  # upper-case digits must come back as they were
        return uids
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(_UID_BYTES), len(uids), [None, pa.py_buffer(binary)])


def unpacked_uids(uids: Any) -> Any:
    """Return the strings of `packed_uids`."""
    uids = uids.combine_chunks() if isinstance(uids, pa.ChunkedArray) else uids
    if not pa.types.is_fixed_size_binary(uids.type):
        return uids
    start = uids.offset * _UID_BYTES
    text = bytes(memoryview(uids.buffers()[1])[start : start + _UID_BYTES * len(uids)]).hex().encode()
    offsets = np.arange(0, len(text) + 1, 2 * _UID_BYTES, dtype=np.int32)
    return pa.StringArray.from_buffers(len(uids), pa.py_buffer(offsets), pa.py_buffer(text))
