"""Write a LinkTable as parquet in `links/`, one row for each URL, for curation and for img2dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.data import DatasetSpec, Shard, write_index
from vfm.plugin import Context, LinkTable, TablePanel
from vfm_curation.shard_files import link_files

FOLDER = "links"
NUM_EXAMPLES = 12


def link_schema() -> pa.Schema:
    """Define the columns of a table of links.

    They are uid (the hash of the URL), url, caption (the first text, for tools that take one), and texts.
    """
    return pa.schema({"uid": pa.string(), "url": pa.string(), "caption": pa.string(), "texts": pa.list_(pa.string())})


def table_schema() -> pa.Schema:
    """Define the columns of a LinkTable.

    These are the columns of `link_schema`, and `noai` and `license`: what the pages with the image say about its use,
    null where no page was read.
    """
    return link_schema().append(pa.field("noai", pa.bool_())).append(pa.field("license", pa.string()))


def _first_batch(files: Iterable[Path]) -> pa.RecordBatch:
    """Read the first links. Some files may be empty, but not all."""
    for file in files:
        for batch in pq.ParquetFile(file, page_checksum_verification=True).iter_batches(NUM_EXAMPLES):
            return batch
    raise ValueError("expected at least one link")


def publish_links(ctx: Context, folder: Path, language: str) -> LinkTable:
    """Move finished parquet files of `table_schema` into the artifact and index them."""
    home = link_files(folder, ctx.directory / FOLDER)
    parts = sorted(home.glob("*.parquet"))
    shards = [Shard.of(part, pq.read_metadata(part).num_rows, format="parquet") for part in parts]
    spec = DatasetSpec(images=False, texts={language: "texts"})
    num_samples = write_index(ctx.directory, shards, spec)
    rows: list[list[str | float | int | None]] = []
    for link in _first_batch(parts).to_pylist():
        rows.append([link["url"], " | ".join(link["texts"])])
    ctx.panel(
        TablePanel(title="Links", note="The first ones, by the hash of the URL.", columns=["url", "texts"], rows=rows)
    )
    return LinkTable.create(ctx.directory, num_samples=num_samples, languages=[language])
