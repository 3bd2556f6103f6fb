"""What is wrong or odd about an entry list: dead entries, strings left out, entries that stand twice."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vfm_curation.matching import dead_entries
from vfm_curation.metadata.entries import SHARED, EntryList, Row

LINT_FILE = "lint.parquet"
Verdict = Literal["dead", "left out", "odd"]


@dataclass(frozen=True)
class Finding:
    """One entry and what is wrong with it: it can never match, was left out, or is odd but stays."""

    language: str
    entry: str
    source: str
    verdict: Verdict
    reason: str


def lint(entries: EntryList) -> list[Finding]:
    """All findings: the dead, the left out, the odd, each in the order of the list."""
    rows = list(entries)
    dead = dead_entries(entry for _, entry, _ in rows)
    found = [Finding(*rows[index], "dead", reason) for index, reason in dead.items()]
    found += [Finding(*row, "left out", reason) for row, reason in entries.left_out]
    alive = [row for index, row in enumerate(rows) if index not in dead]
    return [*found, *_odd(alive)]


def _odd(rows: Sequence[Row]) -> Iterator[Finding]:
    shared = {entry for language, entry, _ in rows if language == SHARED}
    for row in rows:
        language, entry, _ = row
        if "" in entry.split(" "):
            yield Finding(*row, "odd", "a space too many: it matches only where a text has the same")
        elif not entry.strip(string.punctuation):
            yield Finding(*row, "odd", "punctuation alone")
        elif language != SHARED and entry in shared:
            yield Finding(*row, "odd", "also an entry for any language: a text counts for both")


def save_findings(directory: Path, findings: Sequence[Finding]) -> None:
    """Writes `lint.parquet`, a row for each finding."""
    names = list(Finding.__dataclass_fields__)
    columns = [pa.array([getattr(finding, name) for finding in findings], pa.string()) for name in names]
    pq.write_table(pa.table(columns, names=names), directory / LINT_FILE, compression="zstd")
