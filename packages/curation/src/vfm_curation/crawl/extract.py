"""Find links of images with texts in crawl files, in two passes over shards (`curation.extract`).

A shard of the first pass is a crawl file. Its links are written sorted by uid and cut into buckets, ranges of uids. A
shard of the second pass is a bucket. It merges the links of this bucket from all files and reads nothing else of them.
Memory is therefore bounded by a single file, then by a single bucket, whatever the size of the crawl, and the table
depends neither on the order of the files nor on the number of buckets.
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
import pyarrow.compute as pc

from vfm.plugin import Context, LinkTable, Preflight, UserError, expand_paths, files
from vfm_curation.crawl.extract_links import Link, links_of_page, links_of_wat, url_hash
from vfm_curation.crawl.extract_records import read_records
from vfm_curation.crawl.link_table import publish_links, table_schema
from vfm_curation.crawl.path_lists import expand_lists, is_path_list
from vfm_curation.crawl.stages import ExtractLinks
from vfm_curation.engine import kept_workers, run_shards
from vfm_curation.shard_files import ARROW, finished_summary, made_from, read_batch, write_batches, write_shard_file
from vfm_curation.summaries import TaskSummary, with_progress

RULES = 6  # increase when the same file gives other links
LINKS = pa.schema(
    {
        "uid": pa.string(),
        "url": pa.string(),
        "field": pa.int8(),
        "text": pa.string(),
        "noai": pa.bool_(),
        "license": pa.string(),
    }
)
ROWS_A_GROUP = 1 << 16
PAGES = ("text/html", "application/xhtml+xml")


def check_extract(config: ExtractLinks, ctx: Preflight) -> None:
    """Check that local files exist, and that the packages that read remote ones are installed."""
    paths = expand_paths(config.path)
    for path in paths:
        if not files.is_remote(path) and not files.exists(path):
            raise UserError(f"{path}: no such file")
    roots = [config.root] if any(map(is_path_list, paths)) else []
    remote = next(filter(files.is_remote, [*paths, *roots]), None)
    if remote:
        files.filesystem(remote)


def extract_links(config: ExtractLinks, ctx: Context) -> LinkTable:
    """Extract the links to images with texts from a crawl.

    The files `links/00000.parquet`, ... have the columns uid, url, caption and texts. Rows are sorted by uid, the hash
    of the URL.
    """
    paths = expand_lists(expand_paths(config.path), config.root)[: config.num_files]
    # The hash of all files is part of each bucket's source: another list of files merges again.
    listed = ctx.work / "paths.txt"
    source = made_from(*map(fingerprint, paths))
    job = ExtractJob(listed, source, ctx.work / "files", ctx.work / "table", config.buckets, config.unescape)
    job.paths.write_text("\n".join(paths), encoding="utf-8")
    for folder in (job.work, job.folder):
        folder.mkdir(exist_ok=True)
    with kept_workers(config.runtime):
        num_pages = num_texts = 0
        extracting = run_shards(extract_file, job, range(len(paths)), config.runtime)
        for summary in with_progress(ctx, extracting, len(paths)):
            num_pages = num_pages + summary.num_pages
            num_texts = num_texts + summary.num_texts
        if not num_texts:
            first = f"{len(paths)} files, of which the first is {paths[0]}"
            raise UserError(f"{config.name}: no image with a text in {first}")
        num_merged = num_noai = 0
        merging = run_shards(merge_bucket, job, range(config.buckets), config.runtime)
        for bucket in with_progress(ctx, merging, config.buckets):
            num_merged = num_merged + bucket.num_texts
            num_noai = num_noai + bucket.num_noai
    table = publish_links(ctx, job.folder, config.language)
    values = {"pages": num_pages, "texts_found": num_texts, "texts": num_merged, "links": table.num_samples}
    values["noai_links"] = num_noai
    named_values = {f"curation/{name}": value for name, value in values.items()}
    ctx.emit("metrics", step=1, samples=table.num_samples, values=named_values)
    return table


@dataclass(frozen=True)
class ExtractJob:
    """Settings that all tasks of an extraction share."""

    paths: Path  # a text file: the crawl files, one a line
    source: str  # hash of the crawl files' fingerprints when the extraction began
    work: Path  # where the first pass writes the links of each file
    folder: Path  # where the second pass writes the table
    num_buckets: int
    unescape: bool

    def links(self, file: int) -> Path:
        """Build the path of the links of a crawl file."""
        return self.work / f"{file:08d}{ARROW}"

    def bucket(self, number: int) -> Path:
        """Build the path of a bucket of the table."""
        return self.folder / f"{number:05d}.parquet"


@dataclass
class ExtractSummary(TaskSummary):
    """Number of pages, and of texts of images, in a crawl file."""

    num_pages: int = 0


@dataclass
class BucketSummary(TaskSummary):
    """Number of distinct texts, of distinct URLs, and of URLs whose pages opt out of training, in a bucket."""

    num_links: int = 0
    num_noai: int = 0


@functools.lru_cache(maxsize=1)
def _paths(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def fingerprint(path: str) -> list[Any]:
    """Identify the state of a crawl file.

    Returns:
        Path, size and time of a local file, or the address of a remote file.
    """
    if files.is_remote(path):
        return [path]
    return [path, *files.size_and_time(path)]


def extract_file(job: ExtractJob, number: int) -> ExtractSummary:
    """Write the links of a crawl file, each text of a URL once, as a task of the first pass."""
    path = _paths(job.paths)[number]
    file = job.links(number)
    source_hash = made_from(fingerprint(path), job.num_buckets, job.unescape, RULES)
    finished = finished_summary(file, source_hash)
    if finished:
        return ExtractSummary.of(finished)
    summary = ExtractSummary()
    # A dict instead of a set keeps the order in which links were found.
    links: dict[Link, None] = {}
    for record, content in read_records(path, summary.skip):
        links.update(dict.fromkeys(_links_of_record(record, content, path, summary, unescape=job.unescape)))
    summary.num_texts = len(links)
    write_batches(file, in_buckets(links, job.num_buckets), LINKS, source_hash, vars(summary))
    return summary


def _links_of_record(
    record: Any, content: bytes, path: str, summary: ExtractSummary, *, unescape: bool
) -> Iterable[Link]:
    record_type = str(record.headers.get("WARC-Type") or "")
    content_type = str(record.headers.get("Content-Type") or "")
    page = str(record.headers.get("WARC-Target-URI") or "")
    if record_type == "metadata" and content_type.startswith("application/json"):
        try:
            content_of_wat = json.loads(content)
        except (ValueError, RecursionError):
            summary.skip("broken_json", f"{path}: {page}")
            return ()
        summary.num_pages += 1
        return links_of_wat(content_of_wat, summary.skip, unescape=unescape)
    if record_type == "response" and content_type.startswith("application/http"):
        try:
            record.set_bytes_content(content)
            record.parse_http(auto_decode="all")
            body = record.reader.read()
        except (OSError, ValueError):
            summary.skip("broken_http", f"{path}: {page}")
            return ()
        if record.http_headers.status_code == 200 and (record.http_content_type or "").lower() in PAGES:
            summary.num_pages += 1
            robots = record.http_headers.get("X-Robots-Tag")
            return links_of_page(body, page, record.http_charset, summary.skip, robots=robots)
    return ()


def in_buckets(links: Iterable[Link], num_buckets: int) -> Iterator[pa.Table]:
    """Yield the links as one table for each bucket, sorted by uid.

    Buckets are equal ranges of uids in order. Some may be empty.
    """
    rows = [{"uid": url_hash(link.url), **vars(link)} for link in links]
    # Sorted in the first pass, so that the second finds a bucket of each file as one slice.
    table = pa.Table.from_pylist(rows, schema=LINKS).sort_by([(name, "ascending") for name in LINKS.names])
    uid = table["uid"].to_numpy(zero_copy_only=False).astype(str)
    # Hashes are uniform, so equal ranges hold about equally many links.
    bounds = [f"{round(2**32 * bucket / num_buckets):08x}" for bucket in range(1, num_buckets)]
    for low, high in pairwise([0, *np.searchsorted(uid, bounds).tolist(), len(uid)]):
        yield table.slice(low, high - low)


def merge_bucket(job: ExtractJob, number: int) -> BucketSummary:
    """Merge the links of a bucket over all files, as a task of the second pass.

    The table has one row for each URL: uid, url, caption (the first text), texts. Texts are distinct. Texts of `alt`
    come first, then texts of `title`, then texts of `data-image-title`, each in alphabetical order. `noai` is true if
    any page with the image opts out of training. `license` is null where pages name different ones.
    """
    file = job.bucket(number)
    source_hash = made_from(job.source, number, job.num_buckets, job.unescape, RULES)
    finished = finished_summary(file, source_hash)
    if finished:
        return BucketSummary.of(finished)
    num_files = len(_paths(job.paths))
    table = merged(pa.Table.from_batches(read_batch(job.links(file), number) for file in range(num_files)))
    num_texts = len(table["texts"].combine_chunks().values)
    num_noai = pc.sum(table["noai"]).as_py() or 0
    summary = BucketSummary(num_links=len(table), num_texts=num_texts, num_noai=num_noai)
    write_shard_file(file, table, source_hash, vars(summary), rows_a_group=ROWS_A_GROUP)
    return summary


def merged(links: pa.Table) -> pa.Table:
    """Merge the rows of links to one row for each URL, sorted by uid."""
    # One thread, or the order of groups would differ from run to run.
    of_url = ["uid", "url"]
    pages = links.group_by(of_url, use_threads=False)
    rights = pages.aggregate([("noai", "any"), ("license", "min"), ("license", "max")])
    rights = rights.sort_by([(name, "ascending") for name in of_url])
    same = pc.equal(rights["license_min"], rights["license_max"])
    licenses = pc.if_else(same, rights["license_min"], None)
    links = links.group_by(["uid", "url", "text"], use_threads=False).aggregate([("field", "min")])
    links = links.sort_by([(name, "ascending") for name in ("uid", "url", "field_min", "text")])
    url = links["url"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.append(True, url[1:] != url[:-1])[: len(url)])
    texts = pa.ListArray.from_arrays(
        pa.array(np.append(starts, len(links)), pa.int32()), links["text"].combine_chunks()
    )
    firsts = links.take(starts)
    columns = [firsts["uid"], firsts["url"], firsts["text"], texts, rights["noai_any"], licenses]
    return pa.table(columns, schema=table_schema())
