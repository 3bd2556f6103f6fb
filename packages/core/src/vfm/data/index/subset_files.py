"""Write and read a curated subset, as one parquet file for each shard of its pool and a small index.

    subset/NNNNNNNN.parquet   a row for each text of the shard that matched or passed, kept or not
    subset_index.parquet      shard, language, samples, kept_samples, texts, kept_texts

For each shard with a text, the index has a row with a null language, and a row for each language of its texts. With the
index, a reader opens only the shards that it needs.

If all uids of a subset have 32 hexadecimal digits, they are stored as 16 bytes. Otherwise, uids are stored as text. All
files of a subset have the same columns and types, so that other programs can read the folder as one table.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vfm.base import UserError
from vfm.data.samples.arrays import one_array
from vfm.storage.store_files import open_parquet_file, read_parquet, reading

SUBSET_FOLDER = "subset"
SUBSET_INDEX = "subset_index.parquet"
FEW_VALUES = ["language", "text_index"]  # columns with few distinct values
_UID_BYTES = 16


def subset_schema() -> Any:
    """Define the schema of a subset in memory.

    There is a row for each text that matched or passed, kept or not. Rows are sorted by (shard, row, language,
    text_index). shard and row locate the sample in the pool's index, uid identifies it, language and text_index select
    a text of the sample, and probability is the probability of keeping the text. kept is the result of the draw. A
    fixed subset uses the kept rows, and `sampler: balanced` redraws from all rows.
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
    """Define the schema of `subset_index.parquet`. The first row of a shard, with a null language, is its total."""
    counts = dict.fromkeys(("samples", "kept_samples", "texts", "kept_texts"), pa.int64())
    return pa.schema({"shard": pa.int32(), "language": pa.string(), **counts})


def stored_subset(table: Any, *, packed: bool) -> Any:
    """Convert the rows of a shard to the form of its file, which has no column `shard`.

    Args:
        table: Rows in `subset_schema`. Uids may be packed.
        packed: Whether uids are stored as 16 bytes. It must be the same for all shards of a subset.
    """
    table = table.select(subset_schema().names[1:])
    uids = packed_uids(table["uid"]) if packed else unpacked_uids(table["uid"])
    return table.set_column(table.schema.get_field_index("uid"), "uid", uids)


def subset_index_rows(shard: int, table: Any) -> list[dict[str, Any]]:
    """Compute the rows of the index for a shard's table. A table without texts has no rows."""
    if not len(table):
        return []
    languages = sorted(table["language"].unique().to_pylist())
    if len(languages) == 1:  # the counts of the only language are the total
        total = _counted(shard, None, table)
        return [total, total | {"language": languages[0]}]
    rows = [_counted(shard, None, table)]
    for language in languages:
        part = table.filter(pc.equal(table["language"], language))
        rows.append(_counted(shard, language, part))
    return rows


def _counted(shard: int, language: str | None, table: Any) -> dict[str, Any]:
    rows = table["row"].to_numpy()
    is_kept = table["kept"].to_numpy()
    return {
        "shard": shard,
        "language": language,
        "samples": num_distinct(rows),
        "kept_samples": num_distinct(rows[is_kept]),
        "texts": len(rows),
        "kept_texts": int(is_kept.sum()),
    }


def num_distinct(ascending: Any) -> int:
    """Count the distinct values of an ascending array."""
    if not len(ascending):
        return 0
    return int(np.count_nonzero(ascending[1:] != ascending[:-1])) + 1


def write_subset_index(directory: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the index of the shards' files from the `subset_index_rows` of all shards, in any order."""
    ordered = sorted(rows, key=lambda row: (row["shard"], row["language"] or ""))
    table = pa.Table.from_pylist(ordered, index_schema())
    pq.write_table(table, directory / SUBSET_INDEX, compression="zstd", write_page_checksum=True)


def write_subset(directory: Path, table: Any) -> None:
    """Write a subset from a table in `subset_schema`, sorted by shard."""
    (directory / SUBSET_FOLDER).mkdir(parents=True, exist_ok=True)
    packed = pa.types.is_fixed_size_binary(packed_uids(table["uid"]).type)
    rows: list[dict[str, Any]] = []
    for shard in table["shard"].unique().to_pylist():
        part = table.filter(pc.equal(table["shard"], shard))
        rows += subset_index_rows(shard, part)
        pq.write_table(
            stored_subset(part, packed=packed),
            subset_file(directory, shard),
            compression="zstd",
            use_dictionary=FEW_VALUES,
            write_page_checksum=True,
        )
    write_subset_index(directory, rows)


def subset_file(directory: Path, shard: int) -> Path:
    """Build the path of a shard's file in the folder of a subset."""
    return directory / SUBSET_FOLDER / f"{shard:08d}.parquet"


def read_subset_index(directory: Path) -> Any:
    """Read the index of a subset, in `index_schema`.

    Raises:
        UserError: If the index is missing or damaged.
    """
    file = directory / SUBSET_INDEX
    if (directory / "subset.parquet").is_file() and not file.is_file():
        raise UserError(f"{directory}: a subset of an older version of vfm, in one file; curate again")
    if not file.is_file():
        raise UserError(f"{directory}: {SUBSET_INDEX} is missing; expected a curated subset")
    return read_parquet(file, index_schema().names)


def read_subset_shard(
    directory: Path, shard: int, columns: Sequence[str] | None = None, *, unpack_uids: bool = True
) -> Any:
    """Read the rows of a shard of a subset.

    Args:
        directory: Folder of the subset.
        shard: Number of the shard.
        columns: Columns to read. Default: all of `subset_schema`.
        unpack_uids: Convert uids to texts. False: uids are as they are stored, which may be 16 bytes each.

    Raises:
        UserError: If the file is missing or damaged, lacks a column, or is not sorted by row.
    """
    path = subset_file(directory, shard)
    names = [name for name in columns or subset_schema().names if name != "shard"]
    with open_parquet_file(path) as file, reading(path, "a curated subset"):
        missing = set(names) - set(file.schema_arrow.names)
        if missing:
            raise UserError(f"{path}: no column '{min(missing)}'; curate again with this version of vfm")
        table = file.read(names)
    if "uid" in names and unpack_uids:
        table = table.set_column(names.index("uid"), "uid", unpacked_uids(table["uid"]))
    if "row" in names and (np.diff(table["row"].to_numpy()) < 0).any():
        raise UserError(f"{path}: not sorted by row")
    if columns is None or "shard" in columns:
        table = table.append_column("shard", pa.array(np.full(len(table), shard, np.int32)))
    return table.select(columns or subset_schema().names)


def read_subset(directory: Path, columns: Sequence[str] | None = None) -> Any:
    """Read all rows of a subset into one table. The subset must fit into memory.

    Args:
        directory: Folder of the subset.
        columns: Columns to read. Default: all.

    Raises:
        UserError: If a file is missing or damaged.
    """
    schema = pa.schema([subset_schema().field(name) for name in columns or subset_schema().names])
    tables = [schema.empty_table()]
    for shard in read_subset_index(directory)["shard"].unique().to_pylist():
        tables.append(read_subset_shard(directory, shard, columns).cast(schema))
    return pa.concat_tables(tables)


def packed_uids(uids: Any) -> Any:
    """Pack uids into 16 bytes each if all are 32 lower-case hexadecimal digits, otherwise keep the strings.

    No uids are packed too, so that a shard without texts does not differ from the other shards.
    """
    uids = one_array(uids)
    if uids.type != pa.string() or uids.null_count:
        return uids
    if not len(uids):
        return pa.array([], pa.binary(_UID_BYTES))
    if set(pc.min_max(pc.binary_length(uids)).as_py().values()) != {2 * _UID_BYTES}:
        return uids
    _, offsets, data = uids.buffers()
    first = int(np.frombuffer(offsets, np.int32)[uids.offset])
    text = memoryview(data)[first : first + 2 * _UID_BYTES * len(uids)]
    try:
        binary = binascii.unhexlify(text)
    except binascii.Error:
        return uids
    if binascii.hexlify(binary) != text:  # upper-case digits must come back as they were
        return uids
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(_UID_BYTES), len(uids), [None, pa.py_buffer(binary)])


def unpacked_uids(uids: Any) -> Any:
    """Convert the result of `packed_uids` back to strings."""
    uids = one_array(uids)
    if not pa.types.is_fixed_size_binary(uids.type):
        return uids
    start = uids.offset * _UID_BYTES
    text = binascii.hexlify(memoryview(uids.buffers()[1])[start : start + _UID_BYTES * len(uids)])
    offsets = np.arange(0, len(text) + 1, 2 * _UID_BYTES, dtype=np.int32)
    return pa.StringArray.from_buffers(len(uids), pa.py_buffer(offsets), pa.py_buffer(text))
