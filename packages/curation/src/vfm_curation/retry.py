"""Work of `curation.retry`: which failed downloads of img2dataset to try again. One of its shards is one task.

Source: img2dataset's output, github.com/rom1504/img2dataset: a parquet file for each shard with `url`, `status`
("success" or the failure), `error_message`, the caption and the columns that it was configured to save.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vfm.data import open_parquet
from vfm.plugin import Context, LinkTable, Preflight, UserError, files
from vfm_curation.engine import Summary, run_shards, with_progress
from vfm_curation.extract_links import url_hash
from vfm_curation.link_table import publish_links, table_schema
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file
from vfm_curation.stages import RetryLinks

COLUMNS = ("url", "status", "error_message")
RULES = 1  # increase when the same outcomes give other links


def check_retry(config: RetryLinks, ctx: Preflight) -> None:
    """Check the regular expression, and that the first file has img2dataset's columns."""
    check_expression(config.hopeless)
    for path in files.expand_paths(config.path)[:1]:
        open_outcomes(path)


def retry_links(config: RetryLinks, ctx: Context) -> LinkTable:
    """Write `links/00000.parquet`, ..., as `curation.extract` does."""
    paths = tuple(files.expand_paths(config.path))
    job = RetryJob(paths, config.hopeless, ctx.work / "table")
    job.folder.mkdir(exist_ok=True)
    outcomes: Counter[str] = Counter()
    for summary in with_progress(ctx, run_shards(retry_file, job, range(len(paths)), config.runtime), len(paths)):
        outcomes.update(summary.outcomes)
    if not outcomes["to_try_again"]:
        raise UserError(f"{config.name}: no download to try again: {dict(outcomes)}")
    values = {f"curation/{name}": count for name, count in outcomes.items()}
    ctx.emit("metrics", step=1, samples=outcomes["to_try_again"], values=values)
    return publish_links(ctx, job.folder, config.language)


@dataclass(frozen=True)
class RetryJob:
    """What all tasks share."""

    paths: tuple[str, ...]
    hopeless: str
    folder: Path


@dataclass
class RetrySummary(Summary):
    """Number of links by outcome: success, hopeless, to_try_again."""

    outcomes: dict[str, int] = field(default_factory=dict)


def check_expression(expression: str) -> None:
    """Check that Arrow (RE2) can match a regular expression: it has no look-ahead and no back-references.

    Raises:
        UserError: it cannot.
    """
    try:
        pc.match_substring_regex(pa.array([""]), expression)
    except pa.ArrowInvalid as error:
        raise UserError(f"hopeless: expected a regular expression of RE2, got {expression}: {error}") from None


def open_outcomes(path: str) -> Any:
    """Open the parquet file that img2dataset wrote for a shard.

    Raises:
        UserError: it lacks a column.
    """
    parquet = open_parquet(path)
    names = parquet.schema_arrow.names
    if missing := [name for name in COLUMNS if name not in names]:
        raise UserError(f"{path}: expected img2dataset's output with a column '{missing[0]}', got {', '.join(names)}")
    return parquet


def retry_file(job: RetryJob, number: int) -> RetrySummary:
    """Write the links of one shard that are worth another try, as a table of `table_schema`."""
    path, file = job.paths[number], job.folder / f"{number:05d}.parquet"
    made = made_from(path, job.hopeless, RULES)
    if record := finished_summary(file, made):
        return RetrySummary.of(record)
    parquet = open_outcomes(path)
    kept = [name for name in ("uid", "caption", "texts") if name in parquet.schema_arrow.names]
    outcomes = parquet.read([*COLUMNS, *kept])
    failed = outcomes.filter(pc.not_equal(pc.fill_null(outcomes["status"], "none"), "success"))
    message = pc.fill_null(failed["error_message"].cast(pa.string()), "")
    again = failed.filter(pc.invert(pc.match_substring_regex(message, job.hopeless)))
    counts = {
        "success": len(outcomes) - len(failed),
        "hopeless": len(failed) - len(again),
        "to_try_again": len(again),
    }
    write_shard_file(file, _links(again), made, vars(summary := RetrySummary(outcomes=counts, num_texts=len(outcomes))))
    return summary


def _links(rows: pa.Table) -> pa.Table:
    nothing = [None] * len(rows)
    urls = rows["url"].to_pylist()
    uids, captions, texts = (
        rows[name].to_pylist() if name in rows.column_names else nothing for name in ("uid", "caption", "texts")
    )
    links = [
        {
            "uid": uid or url_hash(url),
            "url": url,
            "caption": caption,
            "texts": several or ([caption] if caption else []),
        }
        for uid, url, caption, several in zip(uids, urls, captions, texts, strict=True)
    ]
    return pa.Table.from_pylist(links, schema=table_schema())
