"""Panels of an entry list: where entries come from, and which can never match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vfm.panels import BarsPanel, Panel, TablePanel
from vfm_curation.metadata.entries import Row

NUM_SHOWN = 20


def metadata_panels(rows: Sequence[Row], dead: Mapping[int, str]) -> list[Panel]:
    """Entries by language and source, and the dead ones (id -> reason)."""
    by_source = Counter((language, source) for language, _, source in rows)
    labels = [" ".join(filter(None, place)) for place in by_source]
    values = [float(count) for count in by_source.values()]
    panels: list[Panel] = [
        BarsPanel(title="Entries by source", order=10, labels=labels, values=values, x_label="entries")
    ]
    if dead:
        shown: list[list[str | float | int | None]] = [
            [rows[i][1], rows[i][0], reason] for i, reason in list(dead.items())[:NUM_SHOWN]
        ]
        note = f"{len(dead):,} of {len(rows):,} entries can never match; the first ones:"
        panels.append(
            TablePanel(title="Dead entries", note=note, order=20, columns=["entry", "language", "why"], rows=shown)
        )
    return panels
