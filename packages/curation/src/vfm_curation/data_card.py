"""The data card: what curation did to the entries and the texts, as a table on disk and as panels of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vfm.panels import BarsPanel, LinesPanel, Panel, Series, TablePanel
from vfm_curation.balance import Floats, Integers, cumulative_share
from vfm_curation.subset import BalancedShard

CARD_FILE = "entry_counts.parquet"
NUM_POINTS = 200  # of a curve
NUM_SHOWN = 20
NUM_EXAMPLES = 6  # of each outcome
Row = list[str | float | int | None]


@dataclass(frozen=True)
class DataCard:
    """Counts of each entry before and after balancing, (num_entries,), and the texts at each step."""

    entries: list[str]
    matched: Integers
    kept: Integers
    probability: Floats
    t: float
    funnel: Mapping[str, int]

    def save(self, directory: Path) -> None:
        """Writes the counts, one row an entry."""
        columns = {
            "entry": self.entries, "matched": self.matched, "kept": self.kept, "probability": self.probability,
        }  # fmt: skip
        pq.write_table(pa.table(columns), directory / CARD_FILE, compression="zstd")

    def panels(self) -> list[Panel]:
        """Funnel, head/tail curve, commonest entries."""
        return [self._funnel(), self._head_tail_curve(), self._top_entries()]

    def _funnel(self) -> Panel:
        labels, values = list(self.funnel), [float(value) for value in self.funnel.values()]
        note = f"Kept are {values[-1] / values[0]:.1%} of all texts, {values[-1] / values[1]:.1%} of the matched ones."
        return BarsPanel(title="Curation funnel", note=note, order=10, labels=labels, values=values, x_label="texts")

    def _head_tail_curve(self) -> Panel:
        tail = self.matched < self.t
        before, after = (counts[tail].sum() / max(1, counts.sum()) for counts in (self.matched, self.kept))
        note = (
            f"Share of all matches that the commonest entries hold. The tail, entries with fewer than t = {self.t:g}"
            f" texts, holds {before:.1%} before and {after:.1%} after. {(self.matched == 0).sum():,} of"
            f" {len(tail):,} entries match nothing."
        )
        series = [_curve("before balancing", self.matched), _curve("after balancing", self.kept)]
        return LinesPanel(
            title="Head and tail", note=note, order=20, series=series,
            x_label="entries, commonest first", y_label="cumulative share of matches", x_log=True,
        )  # fmt: skip

    def _top_entries(self) -> Panel:
        rows: list[Row] = [
            [self.entries[i], int(self.matched[i]), int(self.kept[i]), round(float(self.probability[i]), 4)]
            for i in np.argsort(-self.matched, kind="stable")[:NUM_SHOWN]
        ]
        note = "Texts with each entry before and after. t is no cap: a text is also kept for its rarer entries."
        columns = ["entry", "before", "after", "own probability"]
        return TablePanel(title="Commonest entries", note=note, order=30, columns=columns, rows=rows)


def _curve(name: str, counts: Integers) -> Series:
    share = cumulative_share(counts)
    ranks = np.unique(np.geomspace(1, len(counts), NUM_POINTS).round().astype(np.int64))
    return Series(name=name, x=ranks.astype(float).tolist(), y=share[ranks - 1].tolist())


def examples_panel(shard: BalancedShard, texts: pa.Table, entries: list[str], counts: Integers) -> Panel:
    """Texts of one shard that were kept, dropped, or matched nothing, with what decided it.

    Args:
        shard: a balanced shard.
        texts: all its texts, as `texts_in` gives them.
        entries: the metadata.
        counts: texts matched by each entry, (num_entries,).
    """
    captions = {(t["row"], t["language"], t["text_index"]): _short(t["text"]) for t in texts.to_pylist()}
    identities = [(t["row"], t["language"], t["text_index"]) for t in shard.matches.table.to_pylist()]
    rows: list[Row] = []
    for outcome, chosen in (("kept", shard.kept), ("dropped", ~shard.kept)):
        by_chance = np.flatnonzero(chosen)[np.argsort(shard.probability[chosen], kind="stable")]
        for i in by_chance[_spread(len(by_chance))]:
            rarest = min(shard.matches.ids_of(i), key=lambda entry: counts[entry])
            chance = round(float(shard.probability[i]), 4)
            rows.append([captions[identities[i]], outcome, chance, entries[rarest], int(counts[rarest])])
    matched = set(identities)
    unmatched = [caption for identity, caption in captions.items() if identity not in matched]
    rows += [[unmatched[i], "no entry", 0.0, None, None] for i in _spread(len(unmatched))]
    return TablePanel(
        title="Examples", note="Texts of one shard, from the least to the most likely.", order=40,
        columns=["text", "outcome", "probability", "rarest entry", "its texts"], rows=rows,
    )  # fmt: skip


def _spread(length: int) -> list[int]:
    """Up to NUM_EXAMPLES places, evenly over a list."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, NUM_EXAMPLES))})


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def metadata_panels(sources: Mapping[str, str], dead: Mapping[int, str]) -> list[Panel]:
    """Where entries come from, and which can never match (id -> reason)."""
    by_source = Counter(sources.values())
    labels, values = list(by_source), [float(count) for count in by_source.values()]
    panels: list[Panel] = [
        BarsPanel(title="Entries by source", order=10, labels=labels, values=values, x_label="entries")
    ]
    entries = list(sources)
    if dead:
        rows: list[Row] = [[entries[i], reason] for i, reason in list(dead.items())[:NUM_SHOWN]]
        note = f"{len(dead):,} of {len(entries):,} entries can never match; the first ones:"
        panels.append(TablePanel(title="Dead entries", note=note, order=20, columns=["entry", "why"], rows=rows))
    return panels
