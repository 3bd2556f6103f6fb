"""Findings about an entry list: dead entries, strings left out, odd entries; as a table and as panels."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.plugin import BarsPanel, Panel, TablePanel
from vfm_curation.matching import dead_entries
from vfm_curation.metadata.entries import SHARED, EntryList, Row

LINT_FILE = "lint.parquet"
NUM_SHOWN = 20
NUM_LANGUAGES = 40  # in the table
Kind = Literal["dead", "left out", "odd"]
Cells = list[str | float | int | None]


@dataclass(frozen=True)
class Finding:
    """An entry and what is wrong with it: it can never match (dead), was left out, or is odd but kept."""

    language: str
    entry: str
    source: str
    kind: Kind
    reason: str


def lint(entries: EntryList) -> list[Finding]:
    """Return all findings: dead, left out, odd, each in the order of the list."""
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
            yield Finding(*row, "odd", "a space too many: it matches only texts with the same space")
        elif not entry.strip(string.punctuation):
            yield Finding(*row, "odd", "only punctuation")
        elif language != SHARED and entry in shared:
            yield Finding(*row, "odd", "also an entry for any language: a text counts for both")


def save_findings(directory: Path, findings: Sequence[Finding]) -> None:
    """Write `lint.parquet`, one row for each finding."""
    fields = {"language": "language", "entry": "entry", "source": "source", "verdict": "kind", "reason": "reason"}
    columns = [pa.array([getattr(finding, name) for finding in findings], pa.string()) for name in fields.values()]
    pq.write_table(
        pa.table(columns, names=list(fields)), directory / LINT_FILE, compression="zstd", write_page_checksum=True
    )


def metadata_panels(entries: EntryList, findings: Sequence[Finding]) -> list[Panel]:
    """Return panels of the entries by source, by language if there are several, and of the findings."""
    by_source = Counter(source for _, _, source in entries)
    panels: list[Panel] = [
        BarsPanel(
            title="Entries by source", note=f"{len(entries):,} entries.", order=10, x_label="entries",
            labels=list(by_source), values=[float(count) for count in by_source.values()],
        )
    ]  # fmt: skip
    if len(entries.languages) > 1:
        panels.append(_by_language(entries, list(by_source)))
    dead = [finding for finding in findings if finding.kind == "dead"]
    if dead:
        rows: list[Cells] = [[one.entry, one.language, one.source, one.reason] for one in dead[:NUM_SHOWN]]
        note = f"{len(dead):,} of {len(entries):,} entries can never match; lint.parquet has all. The first ones:"
        columns = ["entry", "language", "source", "reason"]
        panels.append(TablePanel(title="Dead entries", note=note, order=20, columns=columns, rows=rows))
    others = [finding for finding in findings if finding.kind != "dead"]
    if others or entries.num_beyond:
        panels.append(_left_out(others, entries.num_beyond))
    return panels


def _by_language(entries: EntryList, sources: list[str]) -> Panel:
    counts = Counter((language, source) for language, _, source in entries)
    totals = Counter(language for language, _, _ in entries)
    rows: list[Cells] = [
        [language or "any", total, *(counts[language, source] for source in sources)]
        for language, total in totals.most_common(NUM_LANGUAGES)
    ]
    note = f"{len(totals)} languages, those with most entries first."
    return TablePanel(
        title="Entries by language", note=note, order=15, columns=["language", "entries", *sources], rows=rows
    )


def _left_out(findings: Sequence[Finding], num_beyond: int) -> Panel:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        groups.setdefault((one.kind, one.source, one.reason), []).append(one.entry)
    rows: list[Cells] = [
        [kind, source, reason, len(found), ", ".join(entry[:40] for entry in found[:3])]
        for (kind, source, reason), found in groups.items()
    ]
    if num_beyond:
        rows.append(["left out", None, "beyond the size", num_beyond])
    return TablePanel(
        title="Left out and odd", note="lint.parquet has all except those beyond the size.", order=30,
        columns=["finding", "source", "reason", "entries", "examples"], rows=rows,
    )  # fmt: skip
