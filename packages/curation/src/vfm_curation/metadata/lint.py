"""Find problems of an entry list (dead entries, strings left out, odd entries) and show them as table and panels."""

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
NUM_SHOWN = 20  # entries of a table
NUM_LANGUAGES = 40  # in the table
Kind = Literal["dead", "left out", "odd"]
Cells = list[str | float | int | None]


@dataclass(frozen=True)
class EntryFinding:
    """An entry and its problem.

    A dead entry can never match. Other entries were left out, or are odd but kept.
    """

    language: str
    entry: str
    source: str
    kind: Kind
    reason: str


def lint(entries: EntryList) -> list[EntryFinding]:
    """Collect the findings on dead, left-out and odd entries, each kind in the order of the list."""
    rows = list(entries)
    dead = dead_entries(entry for _, entry, _ in rows)
    findings = []
    for index, reason in dead.items():
        findings.append(EntryFinding(*rows[index], "dead", reason))
    for row, reason in entries.left_out:
        findings.append(EntryFinding(*row, "left out", reason))
    alive = [row for index, row in enumerate(rows) if index not in dead]
    return [*findings, *_odd(alive)]


def _odd(rows: Sequence[Row]) -> Iterator[EntryFinding]:
    shared = {entry for language, entry, _ in rows if language == SHARED}
    for row in rows:
        language, entry, _ = row
        if "" in entry.split(" "):
            yield EntryFinding(*row, "odd", "a space too many: it matches only texts with the same space")
        elif not entry.strip(string.punctuation):
            yield EntryFinding(*row, "odd", "only punctuation")
        elif language != SHARED and entry in shared:
            yield EntryFinding(*row, "odd", "also an entry for any language: a text counts for both")


def save_findings(directory: Path, findings: Sequence[EntryFinding]) -> None:
    """Write `lint.parquet`, one row for each finding."""
    fields = {"language": "language", "entry": "entry", "source": "source", "verdict": "kind", "reason": "reason"}
    columns = []
    for name in fields.values():
        columns.append(pa.array([getattr(finding, name) for finding in findings], pa.string()))
    pq.write_table(
        pa.table(columns, names=list(fields)), directory / LINT_FILE, compression="zstd", write_page_checksum=True
    )


def metadata_panels(entries: EntryList, findings: Sequence[EntryFinding]) -> list[Panel]:
    """Build panels of the entries by source, by language if there are several, and of the findings."""
    by_source = Counter(source for _, _, source in entries)
    panels: list[Panel] = [
        BarsPanel(
            title="Entries by source", note=f"{len(entries):,} entries.", order=10, x_label="entries",
            labels=list(by_source), values=[float(count) for count in by_source.values()],
        )
    ]  # fmt: skip
    if len(entries.languages) > 1:
        panels.append(_by_language(entries, list(by_source)))
    dead: list[EntryFinding] = []
    others: list[EntryFinding] = []
    for finding in findings:
        (dead if finding.kind == "dead" else others).append(finding)
    if dead:
        rows: list[Cells] = []
        for finding in dead[:NUM_SHOWN]:
            rows.append([finding.entry, finding.language, finding.source, finding.reason])
        note = f"{len(dead):,} of {len(entries):,} entries can never match; lint.parquet has all. The first ones:"
        columns = ["entry", "language", "source", "reason"]
        panels.append(TablePanel(title="Dead entries", note=note, order=20, columns=columns, rows=rows))
    if others or entries.num_beyond:
        panels.append(_left_out(others, entries.num_beyond))
    return panels


def _by_language(entries: EntryList, sources: list[str]) -> Panel:
    totals = Counter[str]()
    of_sources: dict[str, Counter[str]] = {}
    for language, _, source in entries:
        totals[language] += 1
        of_sources.setdefault(language, Counter())[source] += 1
    rows: list[Cells] = []
    for language, total in totals.most_common(NUM_LANGUAGES):
        rows.append([language or "any", total, *map(of_sources[language].__getitem__, sources)])
    note = f"{len(totals)} languages, those with most entries first."
    return TablePanel(
        title="Entries by language", note=note, order=15, columns=["language", "entries", *sources], rows=rows
    )


def _left_out(findings: Sequence[EntryFinding], num_beyond: int) -> Panel:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.source, finding.reason), []).append(finding.entry)
    rows: list[Cells] = []
    for (kind, source, reason), entries in groups.items():
        examples = ", ".join(entry[:40] for entry in entries[:3])
        rows.append([kind, source, reason, len(entries), examples])
    if num_beyond:
        rows.append(["left out", None, "beyond the size", num_beyond])
    return TablePanel(
        title="Left out and odd", note="lint.parquet has all except those beyond the size.", order=30,
        columns=["finding", "source", "reason", "entries", "examples"], rows=rows,
    )  # fmt: skip
