"""Stage `curation.retry`: choose the failed downloads of img2dataset to try again. Each of its shards is a task.

Source: img2dataset's output, github.com/rom1504/img2dataset: a parquet file for each shard with `url`, `status`
("success" or the failure), `error_message`, the caption and the columns that it was configured to save.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vfm.data import is_text, open_parquet
from vfm.plugin import Context, LinkTable, Preflight, UserError, expand_paths
from vfm_curation.crawl.extract_links import url_hash
from vfm_curation.crawl.link_table import publish_links, table_schema
from vfm_curation.crawl.stages import RetryLinks
from vfm_curation.engine import run_shards
from vfm_curation.pool_texts import OnBad
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file
from vfm_curation.summaries import TaskSummary, with_progress

COLUMNS = ("url", "status", "error_message")
RULES = 1  # increase when the same outcomes give other links


def check_retry(config: RetryLinks, ctx: Preflight) -> None:
    """Check the regular expression, and that the first file has img2dataset's columns."""
    check_expression(config.hopeless)
    for path in expand_paths(config.path)[:1]:
        open_outcomes(path)


def retry_links(config: RetryLinks, ctx: Context) -> LinkTable:
    """Write `links/00000.parquet`, ..., as `curation.extract` does."""
    paths = tuple(expand_paths(config.path))
    job = RetryJob(paths, config.hopeless, ctx.work / "table")
    job.folder.mkdir(exist_ok=True)
    outcomes: Counter[str] = Counter()
    summaries = run_shards(retry_file, job, range(len(paths)), config.runtime)
    for summary in with_progress(ctx, summaries, len(paths)):
        outcomes.update(summary.outcomes)
    if not outcomes["to_try_again"]:
        raise UserError(f"{paths[0]}: no download to try again in {len(paths)} files: {dict(outcomes)}")
    values = {f"curation/{name}": count for name, count in outcomes.items()}
    ctx.emit("metrics", step=1, samples=outcomes["to_try_again"], values=values)
    return publish_links(ctx, job.folder, config.language)


@dataclass(frozen=True)
class RetryJob:
    """Settings that all tasks share."""

    paths: tuple[str, ...]
    hopeless: str
    folder: Path


@dataclass
class RetrySummary(TaskSummary):
    """Number of links by outcome (success, hopeless or to_try_again)."""

    outcomes: dict[str, int] = field(default_factory=dict)


def check_expression(expression: str) -> None:
    """Check that Arrow (RE2) can match a regular expression.

    RE2 has no look-ahead and no back-references.

    Raises:
        UserError: If it cannot.
    """
    try:
        pc.match_substring_regex(pa.array([""]), expression)
    except pa.ArrowInvalid as error:
        raise UserError(f"hopeless: expected a regular expression of RE2, got {expression}: {error}") from None


def open_outcomes(path: str) -> Any:
    """Open the parquet file that img2dataset wrote for a shard.

    Raises:
        UserError: If the file lacks a column, or a column has a wrong type.
    """
    parquet = open_parquet(path)
    names = parquet.schema_arrow.names
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UserError(f"{path}: expected img2dataset's output with a column '{missing[0]}', got {', '.join(names)}")
    for name in {"url", "status", "caption"} & set(names):
        kind = parquet.schema_arrow.field(name).type
        if not (is_text(kind) or pa.types.is_null(kind)):
            raise UserError(f"{path}: expected texts in the column '{name}', got {kind}")
    return parquet


def retry_file(job: RetryJob, number: int) -> RetrySummary:
    """Write the links of a shard that are worth another try, as a table of `table_schema`."""
    path = job.paths[number]
    file = job.folder / f"{number:05d}.parquet"
    source_hash = made_from(path, job.hopeless, RULES)
    finished = finished_summary(file, source_hash)
    if finished:
        return RetrySummary.of(finished)
    parquet = open_outcomes(path)
    optional = [name for name in ("uid", "caption", "texts", "noai", "license") if name in parquet.schema_arrow.names]
    summary = RetrySummary()
    outcomes = _readable(parquet, [*COLUMNS, *optional], path, summary.skip)
    # A missing status is a download that was cut off, which is worth another try.
    failed = outcomes.filter(pc.not_equal(pc.fill_null(outcomes["status"], "none"), "success"))
    message = pc.fill_null(failed["error_message"].cast(pa.string()), "")
    again = failed.filter(pc.invert(pc.match_substring_regex(message, job.hopeless)))
    links = [_link(row) for row in _rows(again, path, summary.skip)]
    summary.num_texts = len(outcomes)
    summary.outcomes = {
        "success": len(outcomes) - len(failed),
        "hopeless": len(failed) - len(again),
        "to_try_again": len(links),
    }
    write_shard_file(file, pa.Table.from_pylist(links, schema=table_schema()), source_hash, vars(summary))
    return summary


def _readable(parquet: Any, columns: list[str], path: str, on_bad: OnBad) -> pa.Table:
    """Read the rows of all readable row groups. Each row of the others is counted as bad."""
    tables = [pa.table(parquet.schema_arrow.empty_table().select(columns))]
    for group in range(parquet.num_row_groups):
        try:
            tables.append(parquet.read_row_group(group, columns=columns))
        except (OSError, pa.ArrowException):
            # The footer knows how many rows are lost.
            for _ in range(parquet.metadata.row_group(group).num_rows):
                on_bad("unreadable_row", f"{path}: row group {group}")
    return pa.concat_tables(tables)


def _rows(table: pa.Table, path: str, on_bad: OnBad) -> Iterator[dict[str, Any]]:
    """Yield the rows with a URL whose texts are UTF-8. The others are counted as bad."""
    for number in range(len(table)):
        try:
            # One row at a time, since Arrow converts all or raises for all.
            (row,) = table.slice(number, 1).to_pylist()
        except UnicodeDecodeError:
            on_bad("wrong_encoding", path)
            continue
        if row["url"]:
            yield row
        else:
            on_bad("missing_url", path)


def _link(row: dict[str, Any]) -> dict[str, Any]:
    caption = row.get("caption")
    texts = row.get("texts") or ([caption] if caption else [])
    rights = {name: row.get(name) for name in ("noai", "license")}
    uid = str(row.get("uid") or url_hash(row["url"]))
    return {"uid": uid, "url": row["url"], "caption": caption, "texts": texts, **rights}
