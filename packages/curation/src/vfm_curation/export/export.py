"""Stage `curation.export`: write a curated subset in the formats of other tools.

It writes a table of pairs, DataComp's uids, links for img2dataset, and tars (`export_tars`).

Sources: DataComp's subset files (`vfm_curation.uids`) and img2dataset's input, github.com/rom1504/img2dataset (parquet
with `url` and `caption`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.format import open_memmap

from vfm.data import (
    DatasetSpec,
    Shard,
    Source,
    open_dataset,
    read_index,
    read_subset_index,
    read_subset_shard,
    write_index,
)
from vfm.plugin import Context, CuratedSubset, Pool, Preflight, TablePanel, UserError
from vfm_curation.crawl.link_table import FOLDER as LINKS_FOLDER, link_schema
from vfm_curation.engine import run_shards
from vfm_curation.export.export_pairs import PAIRS_FOLDER, PairsJob, join_columns, write_pairs
from vfm_curation.export.export_tars import TARS_FOLDER, TarsJob, write_shard
from vfm_curation.export.stages import ExportSubset
from vfm_curation.pool_texts import texts_of
from vfm_curation.shard_files import finished_summary, link_files, made_from, write_shard_file
from vfm_curation.summaries import TaskSummary, with_progress
from vfm_curation.uids import UID_DTYPE, uid_halves

UIDS_FILE = "uids.npy"


def check_export(config: ExportSubset, ctx: Preflight) -> None:
    """Check that the pool has images if tars are to be written."""
    subset = ctx.artifact(config.subset)
    if subset:
        _check_images(config, subset)


def export_subset(config: ExportSubset, ctx: Context) -> Pool:
    """Write the files chosen in the recipe, and the index of the tars."""
    subset = ctx.load(config.subset)
    _check_images(config, subset)
    rows: list[list[str | float | int | None]] = []
    if config.pairs:
        rows.append([f"{PAIRS_FOLDER}/*", "texts", _write_all_pairs(config, ctx, subset)])
    if config.uids:
        write_uids(subset, ctx.directory)
        rows.append([UIDS_FILE, "samples", subset.num_samples])
    if config.links:
        rows.append(["links/*.parquet", "links", _write_all_links(config, ctx, subset)])
    shards = _write_tars(config, ctx, subset) if config.tars else []
    spec = DatasetSpec(texts={language: f"json.{language}" for language in subset.languages})
    num_samples = write_index(ctx.directory, shards, spec)
    if config.tars:
        rows.append([f"tars/{{{len(shards)} tars}}", "samples", num_samples])
    ctx.panel(TablePanel(title="Exported files", order=10, columns=["file", "rows are", "rows"], rows=rows))
    return Pool.create(ctx.directory, num_samples=num_samples, bad_samples=dict(ctx.bad), languages=subset.languages)


def _check_images(config: ExportSubset, subset: CuratedSubset) -> None:
    if config.tars and not read_index(subset.linked(subset.pool)).spec.images:
        raise UserError(f"{config.name}: cannot write tars of '{config.subset}': its pool has only captions")


def _write_all_links(config: ExportSubset, ctx: Context, subset: CuratedSubset) -> int:
    job = LinksJob(subset.path, ctx.work / LINKS_FOLDER)
    job.folder.mkdir(exist_ok=True)
    shards = [shard for shard, size in enumerate(opened(subset.path).shard_sizes) if size]
    num_links = 0
    num_missing = 0
    for summary in with_progress(ctx, run_shards(write_links, job, shards, config.runtime), len(shards)):
        num_links += summary.num_links
        num_missing += summary.num_without
    if not num_links:
        raise UserError(f"{config.name}: no sample of '{config.subset}' has a URL (json.url, or a column url)")
    if num_missing:
        ctx.warn(f"{num_missing:,} samples have no URL and are not in the links")
    link_files(job.folder, ctx.directory / LINKS_FOLDER)
    return num_links


def _write_tars(config: ExportSubset, ctx: Context, subset: CuratedSubset) -> list[Shard]:
    folder = ctx.work / TARS_FOLDER
    job = TarsJob(subset.path, folder, config.samples_per_shard, config.shuffle_shards, config.seed)
    job.folder.mkdir(exist_ok=True)
    # Rounded up.
    number = -(-subset.num_samples // config.samples_per_shard)
    summaries = with_progress(ctx, run_shards(write_shard, job, range(number), config.runtime), number)
    sizes = {summary.shard: summary.num_samples for summary in summaries}
    folder = link_files(job.folder, ctx.directory / TARS_FOLDER)
    return [Shard.of(folder / job.file(shard).name, sizes[shard]) for shard in range(number)]


def _write_all_pairs(config: ExportSubset, ctx: Context, subset: CuratedSubset) -> int:
    job = PairsJob(subset.path, ctx.work / PAIRS_FOLDER)
    job.folder.mkdir(exist_ok=True)
    shards = shards_of(subset) if subset.matches else range(len(opened(subset.path).shard_sizes))
    summaries = with_progress(ctx, run_shards(write_pairs, job, shards, config.runtime), len(shards))
    number = sum(summary.num_texts for summary in summaries)
    link_files(job.folder, ctx.directory / PAIRS_FOLDER)
    return number


def shards_of(subset: CuratedSubset) -> list[int]:
    """List the shards that have a text in the subset, kept or not."""
    shards: list[int] = read_subset_index(subset.path)["shard"].unique().to_pylist()
    return shards


def write_uids(subset: CuratedSubset, directory: Path) -> None:
    """Write `uids.npy`, the kept samples' uids as two 64-bit halves, sorted. They are sorted on disk, 16 bytes each."""
    # On disk, because the uids of a billion samples take 16 GB.
    uids = open_memmap(directory / UIDS_FILE, "w+", UID_DTYPE, (subset.num_samples,))  # type: ignore[no-untyped-call]
    start = 0
    for shard in shards_of(subset):
        table = read_subset_shard(subset.path, shard, ["row", "uid", "kept"], unpack_uids=False)
        kept_rows = table.filter(table["kept"])
        # Texts are sorted by row, so a new row number is a new sample.
        firsts = np.flatnonzero(np.diff(kept_rows["row"].to_numpy(), prepend=-1))
        halves = uid_halves(kept_rows["uid"].take(pa.array(firsts)))
        uids[start : start + len(halves)] = halves
        start += len(halves)
    uids.sort()
    uids.flush()


@dataclass(frozen=True)
class LinksJob:
    """Settings that all shards of a list of links share."""

    subset: Path
    folder: Path


@dataclass
class LinksSummary(TaskSummary):
    """Number of links of a shard, and of samples without a URL."""

    num_links: int = 0
    num_without: int = 0


@lru_cache(maxsize=1)
def opened(subset: Path) -> Source:
    """Open the subset's samples, once in each process."""
    return open_dataset(CuratedSubset.load(subset))


def links_schema() -> pa.Schema:
    """Define the columns of a table of links, including the columns that join it to the user's own files."""
    schema = link_schema()
    for name, kind in {"key": pa.string(), "shard": pa.string(), "row": pa.int32()}.items():
        schema = schema.append(pa.field(name, kind))
    return schema


def write_links(job: LinksJob, shard: int) -> LinksSummary:
    """Write the kept samples of a shard that have a URL, in the schema `links_schema`."""
    source = opened(job.subset)
    file = job.folder / f"{shard:08d}.parquet"
    source_hash = made_from("links", 2)
    finished = finished_summary(file, source_hash)
    if finished:
        return LinksSummary.of(finished)
    summary = LinksSummary()
    texts = texts_of(source, shard, on_bad=summary.skip)
    rows = texts["row"].to_numpy()
    # The first text of each sample: texts are sorted by row.
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    offsets = pa.array(np.append(firsts, len(rows)), pa.int32())
    captions = texts["text"].combine_chunks()
    columns = {"uid": texts["uid"].take(pa.array(firsts)), "caption": captions.take(pa.array(firsts))}
    columns["texts"] = pa.ListArray.from_arrays(offsets, captions)
    joined = join_columns(source, shard, rows[firsts])
    columns |= {name: joined[name] for name in joined.column_names}
    table = pa.table({name: columns[name] for name in links_schema().names}, schema=links_schema())
    has_url = pc.greater(pc.utf8_length(table["url"]), 0)
    with_url = table.filter(pc.fill_null(has_url, False))
    summary.num_texts, summary.num_links = len(texts), len(with_url)
    summary.num_without = len(table) - len(with_url)
    write_shard_file(file, with_url, source_hash, vars(summary))
    return summary
