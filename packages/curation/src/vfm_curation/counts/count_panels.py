"""Panels about the counts of entries, for the report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from vfm.plugin import BarsPanel, LinesPanel, Panel, Series, TablePanel
from vfm_curation.counts.probabilities import Integers, cumulative_share

NUM_POINTS = 200  # of a curve
NUM_SHOWN = 20  # entries of a table


def panels_of_matches(entries: pa.Table, counts: Integers, num_texts: int, num_matched: int) -> Iterator[Panel]:
    """Build the panels of a match, with its results, the imbalance of the entries, and the most frequent ones.

    Args:
        entries: The metadata, with the columns `language`, `entry` and `source`.
        counts: Texts of each entry, (E,).
        num_texts: Number of texts.
        num_matched: Number of texts with an entry.
    """
    num_used = int(np.count_nonzero(counts))
    half = int(np.searchsorted(cumulative_share(counts), 0.5)) + 1
    yield BarsPanel(
        title="Matched texts", order=10, labels=["texts", "with an entry"], x_label="texts",
        values=[float(num_texts), float(num_matched)],
        note=f"{num_matched / max(1, num_texts):.1%} of the texts have an entry, {counts.sum() / max(1, num_texts):.2f}"
        f" entries each on average. {num_used:,} of {len(counts):,} entries occur, and {half:,} of them make up half of"
        " all matches.",
    )  # fmt: skip
    yield LinesPanel(
        title="Texts of each entry", order=11, series=[ranked("entries", counts)], x_log=True, y_log=True,
        x_label="rank of the entry", y_label="texts with the entry",
        note="Most frequent entries first. Balancing cuts the left end of this curve.",
    )  # fmt: skip
    most = np.argsort(-counts, kind="stable")[:NUM_SHOWN]
    rows: list[list[str | float | int | None]] = []
    for entry, count in zip(entries.take(most).to_pylist(), counts[most].tolist(), strict=True):
        share = round(count / max(1, num_matched), 4)
        rows.append([entry["entry"], entry["language"] or "any", entry["source"], count, share])
    yield TablePanel(
        title="Most frequent entries", order=12, rows=rows,
        columns=["entry", "language", "source", "texts", "share of matched texts"],
        note="Words that say nothing about an image, such as prepositions, should not be among them.",
    )  # fmt: skip


def ranked(name: str, counts: Integers) -> Series:
    """Sort the counts that are not zero in descending order, and take them at log-spaced ranks."""
    # Zeros have no place on a logarithmic axis.
    counts = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(1, max(1, len(counts)), NUM_POINTS).round().astype(np.int64))[: len(counts)]
    return Series(name=name, x=ranks.astype(float).tolist(), y=counts[ranks - 1].astype(float).tolist())
