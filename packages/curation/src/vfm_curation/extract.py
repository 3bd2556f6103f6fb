"""Links of images with texts from crawl files, in two passes over shards: a crawl file each, then a bucket each.

The first pass leaves the links of each file sorted by uid and cut into buckets, ranges of uids; the second merges what
all files say of one bucket, and reads nothing else of them. So memory is that of one file, then of one bucket, however
large the crawl; and the table depends neither on the order of the files nor on the number of buckets.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vfm.data import files
from vfm_curation.engine import Summary
from vfm_curation.extract_links import Link, links_of_page, links_of_wat, url_hash
from vfm_curation.extract_records import read_records
from vfm_curation.link_table import table_schema
from vfm_curation.shard_files import (
    ARROW,
    finished_summary,
    made_from,
    read_batch,
    write_batches,
    write_shard_file,
)

RULES = 2  # raised where the same file gives other links
LINKS = pa.schema({"uid": pa.string(), "url": pa.string(), "field": pa.int8(), "text": pa.string()})
ROWS_A_GROUP = 1 << 16
PAGES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class ExtractJob:
    """What all tasks of an extraction share."""

    paths: Path  # a text file: the crawl files, one a line
    source: str  # what tells them from others, as they were when the extraction began
    work: Path  # where the first pass leaves the links of each file
    folder: Path  # where the second leaves the table
    num_buckets: int
    unescape: bool

    def links(self, file: int) -> Path:
        """The links of one crawl file."""
        return self.work / f"{file:08d}{ARROW}"

    def bucket(self, number: int) -> Path:
        """One bucket of the table."""
        return self.folder / f"{number:05d}.parquet"


@dataclass
class ExtractSummary(Summary):
    """What a crawl file held: pages or what is said of them, and texts of images."""

    num_pages: int = 0


@dataclass
class BucketSummary(Summary):
    """What a bucket holds: different texts of different addresses."""

    num_links: int = 0


@functools.lru_cache(maxsize=1)
def _paths(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def fingerprint(path: str) -> list[Any]:
    """Tells whether a crawl file is another than it was, where it is local; a remote one by its address."""
    return [path] if files.is_remote(path) else [path, *files.size_and_time(path)]


def extract_file(job: ExtractJob, number: int) -> ExtractSummary:
    """The first pass: leaves the links of one crawl file, each text of an address once."""
    path, file = _paths(job.paths)[number], job.links(number)
    made = made_from(fingerprint(path), job.num_buckets, job.unescape, RULES)
    if record := finished_summary(file, made):
        return ExtractSummary.of(record)
    summary = ExtractSummary()
    links: dict[Link, None] = {}
    for record, content in read_records(path, summary.skip):
        links.update(dict.fromkeys(_links_of_record(record, content, path, summary, unescape=job.unescape)))
    summary.num_texts = len(links)
    write_batches(file, in_buckets(links, job.num_buckets), LINKS, made, vars(summary))
    return summary


def _links_of_record(
    record: Any, content: bytes, path: str, summary: ExtractSummary, *, unescape: bool
) -> Iterable[Link]:
    from fastwarc.warc import WarcRecordType

    kind = str(record.headers.get("Content-Type") or "")
    page = str(record.headers.get("WARC-Target-URI") or "")
    if record.record_type == WarcRecordType.metadata and kind.startswith("application/json"):
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            summary.skip("broken_json", f"{path}: {page}")
            return ()
        summary.num_pages += 1
        return links_of_wat(said, summary.skip, unescape=unescape)
    if record.record_type == WarcRecordType.response and kind.startswith("application/http"):
        try:
            record.set_bytes_content(content)
            record.parse_http(auto_decode="all")
            body = record.reader.read()
        except (OSError, ValueError):
            summary.skip("broken_http", f"{path}: {page}")
            return ()
        if record.http_headers.status_code == 200 and (record.http_content_type or "").lower() in PAGES:
            summary.num_pages += 1
            return links_of_page(body, page, record.http_charset, summary.skip)
    return ()


def in_buckets(links: Iterable[Link], num_buckets: int) -> Iterator[pa.Table]:
    """Links as tables, one a bucket, sorted by uid: equal ranges of uids in their order, some of them empty."""
    rows = [{"uid": url_hash(link.url), **vars(link)} for link in links]
    table = pa.Table.from_pylist(rows, schema=LINKS).sort_by([(name, "ascending") for name in LINKS.names])
    uid = table["uid"].to_numpy(zero_copy_only=False).astype(str)
    bounds = [f"{round(2**32 * bucket / num_buckets):08x}" for bucket in range(1, num_buckets)]
    for low, high in pairwise([0, *np.searchsorted(uid, bounds).tolist(), len(uid)]):
        yield table.slice(low, high - low)


def merge_bucket(job: ExtractJob, number: int) -> BucketSummary:
    """The second pass: merges what all files say of the addresses of one bucket.

    The table has one row an address: uid, url, caption (the first text), texts. Each text stands once, those of `alt`
    before those of `title` before those of `data-image-title`, and else in alphabetical order.
    """
    file = job.bucket(number)
    made = made_from(job.source, number, job.num_buckets, job.unescape, RULES)
    if record := finished_summary(file, made):
        return BucketSummary.of(record)
    num_files = len(_paths(job.paths))
    table = merged(pa.Table.from_batches(read_batch(job.links(file), number) for file in range(num_files)))
    summary = BucketSummary(num_links=len(table), num_texts=len(table["texts"].combine_chunks().values))
    write_shard_file(file, table, made, vars(summary), rows_a_group=ROWS_A_GROUP)
    return summary


def merged(links: pa.Table) -> pa.Table:
    """One row an address from one row a link, sorted by uid."""
    links = links.group_by(["uid", "url", "text"], use_threads=False).aggregate([("field", "min")])
    links = links.sort_by([(name, "ascending") for name in ("uid", "url", "field_min", "text")])
    url = links["url"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.append(True, url[1:] != url[:-1])[: len(url)])
    texts = pa.ListArray.from_arrays(
        pa.array(np.append(starts, len(links)), pa.int32()), links["text"].combine_chunks()
    )
    firsts = links.take(starts)
    return pa.table([firsts["uid"], firsts["url"], firsts["text"], texts], schema=table_schema())
