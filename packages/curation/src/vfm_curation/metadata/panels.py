"""Panels of an entry list: where entries come from, which can never match, what was left out or is odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vfm.panels import BarsPanel, Panel, TablePanel
from vfm_curation.metadata.entries import EntryList
from vfm_curation.metadata.lint import Finding

NUM_SHOWN = 20
NUM_LANGUAGES = 40  # in the table
Cells = list[str | float | int | None]


def metadata_panels(entries: EntryList, findings: Sequence[Finding]) -> list[Panel]:
    """Entries by source; by language where there are several; the findings of the lint."""
    by_source = Counter(source for _, _, source in entries)
    panels: list[Panel] = [
        BarsPanel(
            title="Entries by source", note=f"{len(entries):,} entries.", order=10, x_label="entries",
            labels=list(by_source), values=[float(count) for count in by_source.values()],
        )
    ]  # fmt: skip
    if len(entries.languages) > 1:
        panels.append(_by_language(entries, list(by_source)))
    dead = [finding for finding in findings if finding.verdict == "dead"]
    if dead:
        rows: list[Cells] = [[one.entry, one.language, one.source, one.reason] for one in dead[:NUM_SHOWN]]
        note = f"{len(dead):,} of {len(entries):,} entries can never match; lint.parquet has all. The first ones:"
        columns = ["entry", "language", "source", "why"]
        panels.append(TablePanel(title="Dead entries", note=note, order=20, columns=columns, rows=rows))
    others = [finding for finding in findings if finding.verdict != "dead"]
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
        groups.setdefault((one.verdict, one.source, one.reason), []).append(one.entry)
    rows: list[Cells] = [
        [verdict, source, reason, len(found), ", ".join(entry[:40] for entry in found[:3])]
        for (verdict, source, reason), found in groups.items()
    ]
    if num_beyond:
        rows.append(["left out", None, "beyond the size", num_beyond])
    return TablePanel(
        title="Left out and odd", note="lint.parquet has all but those beyond the size.", order=30,
        columns=["verdict", "source", "why", "entries", "such as"], rows=rows,
    )  # fmt: skip
