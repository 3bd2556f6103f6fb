"""Write Arrow copies of Parquet tables beside their index, and describe what reading the tables at random costs.

A copy is uncompressed and mapped into memory. It has the columns of a sample, in record batches of a row group's rows.
The rows of a damaged row group are null in it: they are read from the table, with the same error as without a copy. The
same holds for a remote row group that could not be read, and a warning counts such groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import pyarrow as pa

from vfm.base import UserError
from vfm.data.index.index import copy_of
from vfm.data.reading.recent_groups import MAX_BYTES
from vfm.data.samples.sample import UNREACHABLE, BadSample
from vfm.data.samples.shards import Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.arrow_files import ArrowFile
from vfm.data.tables.parquet import ParquetShard
from vfm.interfaces import Context
from vfm.storage.publishing import new_file

ROWS_PER_BATCH = 1000
LARGE_GROUP = 4 << 20  # bytes of images in a row group from which random reads are slow


def write_copies(ctx: Context, directory: Path, shards: Sequence[Shard], spec: DatasetSpec) -> DatasetSpec:
    """Write a copy of each table into the folder of the index, and return the spec that records them."""
    done, total = 0, sum(shard.num_samples for shard in shards)
    lacking: list[BadSample] = []
    for number, shard in enumerate(shards):
        for num_rows in _write_copy(shard, spec, copy_of(directory, number), lacking):
            done += num_rows
            ctx.progress(min(done, total), total, "rows copied")
    size = sum(copy_of(directory, number).stat().st_size for number in range(len(shards)))
    ctx.log(f"Arrow copies of tables: {len(shards)}, {size / 1e9:,.1f} GB")
    if lacking:
        ctx.warn(
            f"row groups that could not be read and are not in the Arrow copies: {len(lacking)}, such as"
            f" {lacking[0].where} ({lacking[0].__cause__}); their samples are read from the tables",
            lacks_data=True,
        )
    return spec.model_copy(update={"arrow_copy": True})


def check_copied(stage: str, shard: Shard, spec: DatasetSpec) -> None:
    """Check that a shard is a table of which a copy makes sense.

    Raises:
        UserError: If it is not Parquet with images.
    """
    found = f"shards of the format {shard.format}"
    if shard.format == ParquetShard.format:
        found = "" if spec.images else "captions without images"
        if isinstance(ParquetShard(shard.path, spec).file, ArrowFile):
            found = "Arrow, which needs no copy"
    if found:
        raise UserError(f"{stage}: arrow_copy: expected Parquet with a column of images, got {found}")


def _write_copy(shard: Shard, spec: DatasetSpec, path: Path, lacking: list[BadSample]) -> Iterator[int]:
    """Write a copy of a shard, and yield the number of rows of each batch. `lacking` receives unreachable groups."""
    table = ParquetShard(shard.path, spec)
    schema = pa.schema(map(table.file.schema_arrow.field, table.columns(with_image=True)))
    path.parent.mkdir(exist_ok=True)
    with new_file(path) as stream, pa.ipc.new_stream(stream, schema) as writer:
        for batch in _batches(table, schema, shard.num_samples, lacking):
            writer.write_batch(batch)
            yield batch.num_rows


def _batches(
    table: ParquetShard, schema: pa.Schema, num_rows: int, lacking: list[BadSample]
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of the row groups that have the first `num_rows` rows."""
    for group, end in enumerate(table.ends.tolist()):
        in_group = table.file.metadata.row_group(group).num_rows
        if end - in_group >= num_rows:
            return
        try:
            read = table.read_group(group, with_image=True)
        except BadSample as bad:
            if bad.reason == UNREACHABLE:
                lacking.append(bad)
            yield pa.RecordBatch.from_arrays([pa.nulls(in_group, kind) for kind in schema.types], schema=schema)
        else:
            yield from read.select(schema.names).to_batches(max_chunksize=ROWS_PER_BATCH)


def cost_of_random_reads(shards: Sequence[Shard], spec: DatasetSpec) -> str:
    """Describe what reading tables at random costs. Empty if it is little.

    Small tables stay in memory, and small row groups are fast.
    """
    first = shards[0]
    if first.format != ParquetShard.format or not spec.images or sum(shard.size for shard in shards) <= MAX_BYTES:
        return ""
    table = ParquetShard(first.path, spec)
    if isinstance(table.file, ArrowFile):
        return ""
    metadata = table.file.metadata
    sizes = [0] * metadata.num_row_groups
    for group in range(metadata.num_row_groups):
        for column in map(metadata.row_group(group).column, range(metadata.num_columns)):
            if f"{column.path_in_schema}.".startswith(f"{table.image}."):  # a struct has several columns
                sizes[group] += column.total_uncompressed_size
    size = median(sizes or [0])
    if size <= LARGE_GROUP:
        return ""
    return (
        f"{first.path}: reading a sample at random decodes a row group with {size / 1e6:,.0f} MB of images;"
        " arrow_copy: true writes a copy without this cost, of the size of the uncompressed tables"
    )
