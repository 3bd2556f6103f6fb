"""What a filtering leaves: the subset, the verdict on each text, and panels."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vfm.data import SUBSET_FILE, subset_schema
from vfm.panels import BarsPanel, Panel, TablePanel
from vfm_curation.example_texts import shortened
from vfm_curation.filters.sieve import Pass, Sieve
from vfm_curation.filters.standing import VERDICTS_FILE
from vfm_curation.filters.texts import IDENTITY, opened
from vfm_curation.pool_texts import texts_of

NUM_EXAMPLES = 5  # of each reason


@dataclass
class Outcome:
    """What was kept, and what fell by reason, with the places of the first ones: (shard, row, language, text_index)."""

    num_texts: int = 0
    num_samples: int = 0
    languages: set[str] = field(default_factory=set)
    fallen: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[int, int, str, int]]] = field(default_factory=lambda: defaultdict(list))


def write_outcome(sieve: Sieve, directory: Path) -> Outcome:
    """Writes `subset.parquet` and `verdicts.parquet`, a row group a shard.

    What passes is kept for certain: of a balanced subset only the kept texts were judged, and whoever draws by the
    probabilities must not draw these a second time. `verdicts.parquet` has shard, row, uid, language, text_index and
    `reason` of every text: '' of what passed.
    """
    outcome, subset = Outcome(), subset_schema()
    verdicts = pa.schema([*(subset.field(name) for name in IDENTITY), ("reason", pa.string())])
    with (
        pq.ParquetWriter(directory / SUBSET_FILE, subset, compression="zstd") as kept,
        pq.ParquetWriter(directory / VERDICTS_FILE, verdicts, compression="zstd") as told,
    ):
        for table, codes in sieve.verdicts():
            reasons = [sieve.reasons[code] for code in codes.tolist()]
            table = table.append_column("reason", pa.array(reasons, pa.string()))
            told.write_table(table.select(verdicts.names).cast(verdicts))
            _count(outcome, table)
            standing = table.filter(pa.array(codes == 0))
            if len(standing):
                certain = {"probability": np.ones(len(standing), np.float32), "kept": np.ones(len(standing), np.bool_)}
                for name, values in certain.items():
                    standing = standing.append_column(name, pa.array(values))
                kept.write_table(standing.select(subset.names).cast(subset))
    return outcome


def _count(outcome: Outcome, table: pa.Table) -> None:
    columns = [table[name].to_pylist() for name in ("reason", "shard", "row", "language", "text_index")]
    rows = set()
    for reason, *place in zip(*columns, strict=True):
        if reason:
            outcome.fallen[reason] += 1
            if len(outcome.examples[reason]) < NUM_EXAMPLES:
                outcome.examples[reason].append(tuple(place))
        else:
            outcome.num_texts += 1
            outcome.languages.add(place[2])
            rows.add(place[1])
    outcome.num_samples += len(rows)


def panels(sieve: Sieve, outcome: Outcome) -> list[Panel]:
    """The funnel, what each filter took, and examples of what fell by each reason."""
    return [_funnel(sieve.passes), _passes(sieve.passes), _examples(sieve, outcome)]


def _funnel(passes: Sequence[Pass]) -> Panel:
    first, last = passes[0], passes[-1]
    share = last.num_texts / max(1, first.num_texts)
    note = f"Texts that stand after each filter; {share:.1%} of them, with {last.num_images:,} images, pass all."
    labels, values = [one.name for one in passes], [float(one.num_texts) for one in passes]
    return BarsPanel(title="Filter funnel", note=note, order=10, labels=labels, values=values, x_label="texts")


def _passes(passes: Sequence[Pass]) -> Panel:
    """The same as numbers, with the time; in a file of its own, which alone is another one each time it is made."""
    rows: list[list[str | float | int | None]] = [
        [one.name, one.num_texts, one.num_images, round(one.seconds, 2)] for one in passes
    ]
    return TablePanel(
        title="Filter seconds", note="What stands after each filter, and how long it took with its measuring.",
        order=20, columns=["filter", "texts", "images", "seconds"], rows=rows,
    )  # fmt: skip


def _examples(sieve: Sieve, outcome: Outcome) -> Panel:
    source = opened(sieve.dataset)
    rows_of = functools.lru_cache(1)(lambda shard: texts_of(source, shard).to_pylist())
    places = sorted((shard, place, reason) for reason, found in outcome.examples.items() for shard, *place in found)
    rows: list[list[str | float | int | None]] = []
    for shard, place, reason in places:
        text = next(one for one in rows_of(shard) if [one["row"], one["language"], one["text_index"]] == place)
        rows.append([reason, outcome.fallen[reason], text["language"], shortened(text["text"]), text["uid"]])
    return TablePanel(
        title="What the filters dropped", note="The first texts that fell by each reason.", order=30,
        columns=["reason", "texts in all", "language", "text", "uid"], rows=sorted(rows, key=lambda row: str(row[0])),
    )  # fmt: skip
