"""The bulk of a LinkTable: parquet in `links/`, one row an address, as curation reads it and img2dataset takes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vfm.artifacts import LinkTable
from vfm.panels import TablePanel
from vfm.stage import Context

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "links"
NUM_EXAMPLES = 12


def table_schema() -> pa.Schema:
    """uid (hash of the URL), url, caption (the first text, for tools that take one), texts."""
    import pyarrow as pa

    return pa.schema({"uid": pa.string(), "url": pa.string(), "caption": pa.string(), "texts": pa.list_(pa.string())})


def publish_links(ctx: Context, folder: Path, language: str) -> LinkTable:
    """Moves finished parquet files of `table_schema` into the artifact and indexes them."""
    import pyarrow.parquet as pq

    from vfm.data import DatasetSpec, Shard, write_index

    home = folder.rename(ctx.directory / FOLDER)  # a crash before it loses nothing
    parts = sorted(home.glob("*.parquet"))
    shards = [Shard.of(part, pq.read_metadata(part).num_rows, format="parquet") for part in parts]
    spec = DatasetSpec(images=False, texts={language: "texts"})
    num_samples = write_index(ctx.directory, shards, spec)
    first = next(batch for part in parts for batch in pq.ParquetFile(part).iter_batches(NUM_EXAMPLES))
    rows = [[link["url"], " | ".join(link["texts"])] for link in first.to_pylist()]
    ctx.panel(
        TablePanel(title="Links", note="The first, by the hash of the address.", columns=["url", "texts"], rows=rows)
    )
    return LinkTable.create(ctx.directory, num_samples=num_samples, languages=[language])
