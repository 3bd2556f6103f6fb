"""A curated subset in the formats of others: a table of pairs, DataComp's uids, a list of links for img2dataset.

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

from vfm.artifacts import CuratedSubset, Matches, Metadata
from vfm.data import SUBSET_FILE, Source, open_dataset, uid_of
from vfm_curation.addresses import urls_of_rows
from vfm_curation.engine import Summary
from vfm_curation.filters.standing import VERDICTS_FILE
from vfm_curation.link_table import table_schema
from vfm_curation.metadata import load_entries
from vfm_curation.pool_texts import texts_of
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file
from vfm_curation.shards import FOLDER

PAIRS_FILE, UIDS_FILE, LINKS_FOLDER = "pairs.parquet", "uids.npy", "links"
UID_DTYPE = np.dtype("u8,u8")
TEXT_ORDER = [("row", "ascending"), ("language", "ascending"), ("text_index", "ascending")]
BALANCED = "balanced"  # the reason of a text that matched, and lost the draw


def by_shard(file: Path, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each shard of a file that is sorted by shard, in a memory of a row group and a shard."""
    held: pa.Table | None = None
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=columns)
            held = pa.concat_tables([held, table]) if held is not None else table
            shards = held["shard"].to_numpy()
            starts = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()
            for start, stop in pairwise(starts):
                yield int(shards[start]), held.slice(start, stop - start)
            held = held.slice(starts[-1]) if starts else held
    if held is not None and len(held):
        yield int(held["shard"][0].as_py()), held


def pairs_schema() -> pa.Schema:
    """uid, language, text_index, entries (null from a filter), probability, kept, reason ('' of what is kept)."""
    fields = {"uid": pa.string(), "language": pa.string(), "text_index": pa.int32(), "entries": pa.list_(pa.string())}
    return pa.schema({**fields, "probability": pa.float32(), "kept": pa.bool_(), "reason": pa.string()})


def write_pairs(subset: CuratedSubset, directory: Path) -> int:
    """Writes `pairs.parquet`, a row for each text that was matched, or judged by a filter; returns how many."""
    number = 0
    with pq.ParquetWriter(directory / PAIRS_FILE, pairs_schema(), compression="zstd") as writer:
        for table in _matched_pairs(subset) if subset.matches else _judged_pairs(subset):
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


def _judged_pairs(subset: CuratedSubset) -> Iterator[pa.Table]:
    """What a filter says: of each text whether it passed and why not; its chance is 1 or 0."""
    for _, table in by_shard(subset.path / VERDICTS_FILE):
        kept = pc.equal(table["reason"], "")
        table = table.append_column("kept", kept).append_column("probability", kept.cast(pa.float32()))
        yield table.append_column("entries", pa.nulls(len(table), pa.list_(pa.string())))


def write_uids(subset: CuratedSubset, directory: Path) -> None:
    """Writes `uids.npy`, the kept samples' uids as two 64-bit halves, sorted; 16 bytes each, sorted in the file."""
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
    """128-bit uids as (high, low) halves, (num_uids,): those of 32 hexadecimal digits as they are, others hashed."""
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
    """A shard's links, and samples of which nobody tells the address."""

    num_links: int = 0
    num_without: int = 0


@lru_cache(maxsize=1)
def opened(subset: Path) -> Source:
    """The subset's samples; opened once a process."""
    return open_dataset(CuratedSubset.load(subset))


def write_links(job: LinksJob, shard: int) -> LinksSummary:
    """Writes the kept samples of one shard that have an address, as `table_schema` says, and leaves the others out."""
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
