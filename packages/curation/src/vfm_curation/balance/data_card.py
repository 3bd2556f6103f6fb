"""The data card: counts of entries and texts before and after balancing, as tables on disk; `card_panels` draws it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vfm_curation.balance.subset import SubsetTotals
from vfm_curation.balance.thresholds import EntryLanguages, Thresholds
from vfm_curation.counts.probabilities import Floats, Integers
from vfm_curation.counts.sampled_texts import Expectation

CARD_FILE, CARD_JSON = "entry_counts.parquet", "entry_counts.json"


@dataclass(frozen=True)
class FunnelStep:
    """The number of texts after a step, and how long it took, if that is known."""

    name: str
    texts: int
    seconds: float | None = None


@dataclass(frozen=True)
class WhatIf:
    """What a multiple of the chosen t would keep."""

    factor: float
    tail_share: float
    num_head: int
    expected: Expectation


@dataclass(frozen=True)
class DataCard:
    """Counts of each entry before and after balancing, (num_entries,), with their context."""

    entries: pa.Table  # language, entry; an entry's id is its row
    languages: EntryLanguages
    matched: Integers
    probability: Floats
    thresholds: Thresholds
    made: SubsetTotals
    funnel: Sequence[FunnelStep]
    choices: Sequence[WhatIf]
    texts_of: Mapping[str, int]  # language -> texts, matched or not

    @property
    def kept(self) -> Integers:
        """Kept texts with each entry."""
        return self.made.counts

    def entry(self, number: int) -> str:
        """Return an entry by its id, with its language if it has one."""
        language, entry = (self.entries[name][number].as_py() for name in ("language", "entry"))
        return f"{entry} ({language})" if language else str(entry)

    def save(self, directory: Path) -> None:
        """Write the counts: one row for each entry, and as JSON: {language: {"matched" or "kept": {entry: texts}}}."""
        columns = {"matched": self.matched, "kept": self.kept, "probability": self.probability}
        table = self.entries.select(["language", "entry"])
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        pq.write_table(table, directory / CARD_FILE, compression="zstd", write_page_checksum=True)
        with (directory / CARD_JSON).open("w", encoding="utf-8") as file:
            for number, language in enumerate(self.languages.names):
                file.write(f"{',' if number else '{'}\n{json.dumps(language)}: {{")
                ids = np.flatnonzero(self.languages.places == number)
                # Each entry is encoded once for both counts: json.dumps of the two mappings takes four times as long.
                names = list(map(encode_basestring, self.entries["entry"].take(pa.array(ids)).to_pylist()))
                for name, counts in (("matched", self.matched), ("kept", self.kept)):
                    found = (f"{entry}: {count}" for entry, count in zip(names, counts[ids].tolist(), strict=True))
                    file.write(f"{',' if name == 'kept' else ''}\n {json.dumps(name)}: {{{', '.join(found)}}}")
                file.write("\n}")
            file.write("\n}\n")


def seconds_of(directory: Path) -> float | None:
    """Return how long the stage that made an artifact took, by its manifest; None if it has none."""
    try:
        seconds = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["seconds"]
    except (OSError, ValueError, KeyError):
        return None
    return float(seconds)
