"""What img2dataset says of its downloads, and which of them to try again. One of its shards is one task.

Source: img2dataset's output, github.com/rom1504/img2dataset: a parquet file a shard with `url`, `status` ("success" or
why not), `error_message`, the caption and the columns that it was told to keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vfm.config import UserError
from vfm.data.parquet import open_parquet
from vfm_curation.engine import Summary
from vfm_curation.extract_links import url_hash
from vfm_curation.link_table import table_schema
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file

WANTED = ("url", "status", "error_message")
RULES = 1  # raised where the same outcomes give other links


@dataclass(frozen=True)
class RetryJob:
    """What all tasks share."""

    paths: tuple[str, ...]
    hopeless: str
    folder: Path


@dataclass
class RetrySummary(Summary):
    """Links by what became of them: success, hopeless, or to be tried again."""

    outcomes: dict[str, int] = field(default_factory=dict)


def check_expression(expression: str) -> None:
    """Tells whether Arrow (RE2) can match a regular expression: it knows no look-ahead and no back-reference.

    Raises:
        UserError: it cannot.
    """
    try:
        pc.match_substring_regex(pa.array([""]), expression)
    except pa.ArrowInvalid as error:
        raise UserError(f"hopeless: not a regular expression of RE2's: {expression}: {error}") from None


def open_outcomes(path: str) -> Any:
    """The parquet file that img2dataset left of a shard.

    Raises:
        UserError: it is another.
    """
    parquet = open_parquet(path)
    names = parquet.schema_arrow.names
    if missing := [name for name in WANTED if name not in names]:
        raise UserError(
            f"{path}: no column '{missing[0]}'; img2dataset's output is wanted, this has {', '.join(names)}"
        )
    return parquet


def retry_file(job: RetryJob, number: int) -> RetrySummary:
    """Leaves the links of one shard that are worth another try, as a table of `table_schema`."""
    path, file = job.paths[number], job.folder / f"{number:05d}.parquet"
    made = made_from(path, job.hopeless, RULES)
    if record := finished_summary(file, made):
        return RetrySummary.of(record)
    parquet = open_outcomes(path)
    kept = [name for name in ("uid", "caption", "texts") if name in parquet.schema_arrow.names]
    outcomes = parquet.read([*WANTED, *kept])
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
