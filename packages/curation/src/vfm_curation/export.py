"""Work of `curation.export`: a curated subset in the formats of other tools.

A table of pairs, DataComp's uids, links for img2dataset, and tars (`export_tars`).

Sources: DataComp's subset files and resharder, github.com/mlfoundations/datacomp (a sorted npy of uids as two 64-bit
halves); img2dataset's input, github.com/rom1504/img2dataset (parquet with `url` and `caption`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from vfm.data import SUBSET_FILE, DatasetSpec, Shard, Source, open_dataset, read_index, uid_of, write_index
from vfm.plugin import Context, CuratedSubset, Matches, Metadata, Pool, Preflight, TablePanel, UserError
from vfm_curation.engine import Summary, run_shards, with_progress
from vfm_curation.export_tars import TARS_FOLDER, TarsJob, write_shard
from vfm_curation.filters.survivors import VERDICTS_FILE
from vfm_curation.link_table import FOLDER as LINKS_FOLDER
from vfm_curation.link_table import table_schema
from vfm_curation.matches import FOLDER
from vfm_curation.metadata import load_entries
from vfm_curation.pool_texts import texts_of, urls_of_rows
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file
from vfm_curation.stages import ExportSubset

PAIRS_FILE, UIDS_FILE = "pairs.parquet", "uids.npy"
UID_DTYPE = np.dtype("u8,u8")
TEXT_ORDER = [("row", "ascending"), ("language", "ascending"), ("text_index", "ascending")]
BALANCED = "balanced"  # the reason of a text that matched and lost the draw


def check_export(config: ExportSubset, ctx: Preflight) -> None:
    """Check that the pool has images if tars are to be written."""
    if subset := ctx.artifact(config.subset):
        _check_images(config, subset)


def export_subset(config: ExportSubset, ctx: Context) -> Pool:
    """Write the chosen files, and the index of the tars."""
    subset = ctx.load(config.subset)
    _check_images(config, subset)
    rows: list[list[str | float | int | None]] = []
    if config.pairs:
        rows.append([PAIRS_FILE, "texts", write_pairs(subset, ctx.directory)])
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
    found = list(with_progress(ctx, run_shards(write_links, job, shards, config.runtime), len(shards)))
    num_links = sum(one.num_links for one in found)
    if not num_links:
        raise UserError(f"{config.name}: no sample of '{config.subset}' has a URL (json.url, or a column url)")
    if missing := sum(one.num_without for one in found):
        ctx.warn(f"{missing:,} samples have no URL and are not in the links")
    job.folder.rename(ctx.directory / LINKS_FOLDER)
    return num_links


def _write_tars(config: ExportSubset, ctx: Context, subset: CuratedSubset) -> list[Shard]:
    folder = ctx.work / TARS_FOLDER
    job = TarsJob(subset.path, folder, config.samples_per_shard, config.shuffle_shards, config.seed)
    job.folder.mkdir(exist_ok=True)
    number = -(-subset.num_samples // config.samples_per_shard)
    found = with_progress(ctx, run_shards(write_shard, job, range(number), config.runtime), number)
    sizes = {one.shard: one.num_samples for one in found}
    folder = job.folder.rename(ctx.directory / TARS_FOLDER)
    return [Shard.of(folder / job.file(shard).name, sizes[shard]) for shard in range(number)]


def by_shard(file: Path, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of each shard of a file that is sorted by shard. Memory holds a row group and a shard."""
    held: pa.Table | None = None
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=columns)
            held = pa.concat_tables([held, table]) if held is not None else table
            shards = held["shard"].to_numpy()
            starts = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()
            for start, stop in pairwise(starts):
                yield int(shards[start]), held.slice(start, stop - start)
            held = held.slice(starts[-1]) if starts else held  # the last shard may continue in the next group
    if held is not None and len(held):
        yield int(held["shard"][0].as_py()), held


def pairs_schema() -> pa.Schema:
    """Return: uid, language, text_index, entries (null from a filter), probability, kept, reason ('' if kept)."""
    fields = {"uid": pa.string(), "language": pa.string(), "text_index": pa.int32(), "entries": pa.list_(pa.string())}
    return pa.schema({**fields, "probability": pa.float32(), "kept": pa.bool_(), "reason": pa.string()})


def write_pairs(subset: CuratedSubset, directory: Path) -> int:
    """Write `pairs.parquet`, a row for each text that was matched or filtered, and return the number of rows."""
    number = 0
    with pq.ParquetWriter(directory / PAIRS_FILE, pairs_schema(), compression="zstd") as writer:
        for table in _matched_pairs(subset) if subset.matches else _filtered_pairs(subset):
            writer.write_table(table.select(pairs_schema().names).cast(pairs_schema()))
            number += len(table)
    return number


def _matched_pairs(subset: CuratedSubset) -> Iterator[pa.Table]:
    assert subset.matches
    matches = Matches.load(subset.linked(subset.matches))
    entries = load_entries(Metadata.load(matches.linked(matches.metadata)))["entry"].combine_chunks()
    for shard, table in by_shard(subset.path / SUBSET_FILE):
        found = pq.read_table(matches.path / FOLDER / f"{shard:08d}.parquet").sort_by(TEXT_ORDER)
        lists = found["ids"].combine_chunks()
        words = pa.ListArray.from_arrays(lists.offsets, entries.take(lists.values))
        reasons = pc.if_else(table["kept"], "", BALANCED)
        yield table.append_column("entries", words).append_column("reason", reasons)


def _filtered_pairs(subset: CuratedSubset) -> Iterator[pa.Table]:
    """Yield all texts that a filter saw, with its reason; the probability is 1 or 0."""
    for _, table in by_shard(subset.path / VERDICTS_FILE):
        kept = pc.equal(table["reason"], "")
        table = table.append_column("kept", kept).append_column("probability", kept.cast(pa.float32()))
        yield table.append_column("entries", pa.nulls(len(table), pa.list_(pa.string())))


def write_uids(subset: CuratedSubset, directory: Path) -> None:
    """Write `uids.npy`, the kept samples' uids as two 64-bit halves, sorted. They are sorted on disk, 16 bytes each."""
    found = open_memmap(directory / UIDS_FILE, "w+", UID_DTYPE, (subset.num_samples,))  # type: ignore[no-untyped-call]
    place = 0
    for _, table in by_shard(subset.path / SUBSET_FILE, ["shard", "row", "uid", "kept"]):
        kept = table.filter(table["kept"])
        firsts = np.flatnonzero(np.diff(kept["row"].to_numpy(), prepend=-1))
        halves = uid_halves(kept["uid"].take(pa.array(firsts)))
        found[place : place + len(halves)] = halves
        place += len(halves)
    found.sort()
    found.flush()


def uid_halves(uids: pa.ChunkedArray) -> NDArray[np.void]:
    """Return 128-bit uids as (high, low) halves, (num_uids,): 32 hexadecimal digits unchanged, other uids hashed."""
    hexadecimal = pc.match_substring_regex(uids, r"^[0-9a-fA-F]{32}$").to_numpy()
    names = [uid if fits else uid_of(uid) for uid, fits in zip(uids.to_pylist(), hexadecimal.tolist(), strict=True)]
    numbers = np.frombuffer(bytes.fromhex("".join(names)), dtype=">u8").astype(np.uint64).reshape(-1, 2)
    halves = np.empty(len(names), dtype=UID_DTYPE)
    halves["f0"], halves["f1"] = numbers.T
    return halves


@dataclass(frozen=True)
class LinksJob:
    """What all shards of a list of links share."""

    subset: Path
    folder: Path


@dataclass
class LinksSummary(Summary):
    """Number of links of a shard, and of samples without a URL."""

    num_links: int = 0
    num_without: int = 0


@lru_cache(maxsize=1)
def opened(subset: Path) -> Source:
    """Open the subset's samples, once in each process."""
    return open_dataset(CuratedSubset.load(subset))


def write_links(job: LinksJob, shard: int) -> LinksSummary:
    """Write the kept samples of one shard that have a URL, with the columns of `table_schema`."""
    source = opened(job.subset)
    file, made = job.folder / f"{shard:08d}.parquet", made_from("links", 1)
    if record := finished_summary(file, made):
        return LinksSummary.of(record)
    summary = LinksSummary()
    texts = texts_of(source, shard, on_bad=summary.skip)
    rows = texts["row"].to_numpy()
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    offsets = pa.array(np.append(firsts, len(rows)), pa.int32())
    captions = texts["text"].combine_chunks()
    table = pa.table(
        {
            "uid": texts["uid"].take(pa.array(firsts)),
            "url": urls_of_rows(source, shard, rows[firsts]),
            "caption": captions.take(pa.array(firsts)),
            "texts": pa.ListArray.from_arrays(offsets, captions),
        },
        schema=table_schema(),
    )
    found = table.filter(pc.fill_null(pc.greater(pc.utf8_length(table["url"]), 0), False))
    summary.num_texts, summary.num_links = len(texts), len(found)
    summary.num_without = len(table) - len(found)
    write_shard_file(file, found, made, vars(summary))
    return summary
