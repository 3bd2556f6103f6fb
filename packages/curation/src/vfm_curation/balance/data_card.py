"""Counts of entries and texts before and after balancing, as tables on disk. `card_panels` plots them."""

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

CARD_FILE = "entry_counts.parquet"
CARD_JSON = "entry_counts.json"


@dataclass(frozen=True)
class FunnelStep:
    """Number of texts after a step, and its time in seconds if that is known."""

    name: str
    texts: int
    seconds: float | None = None


@dataclass(frozen=True)
class WhatIf:
    """Expected result of a multiple of the chosen t."""

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
    totals: SubsetTotals
    funnel: Sequence[FunnelStep]
    choices: Sequence[WhatIf]
    texts_of: Mapping[str, int]  # language -> texts, matched or not

    @property
    def kept(self) -> Integers:
        """Kept texts with each entry."""
        return self.totals.counts

    def entry(self, number: int) -> str:
        """Format an entry by its id, with its language if it has one."""
        language = self.entries["language"][number].as_py()
        entry = self.entries["entry"][number].as_py()
        if language:
            return f"{entry} ({language})"
        return str(entry)

    def save(self, directory: Path) -> None:
        """Write the counts as parquet with a row for each entry, and as JSON.

        The JSON is {language: {"matched" or "kept": {entry: texts}}}.
        """
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
                entries = self.entries["entry"].take(pa.array(ids))
                names = list(map(encode_basestring, entries.to_pylist()))
                for name, counts in (("matched", self.matched), ("kept", self.kept)):
                    pairs = zip(names, counts[ids].tolist(), strict=True)
                    members = ", ".join(f"{entry}: {count}" for entry, count in pairs)
                    file.write(f"{',' if name == 'kept' else ''}\n {json.dumps(name)}: {{{members}}}")
                file.write("\n}")
            file.write("\n}\n")


def seconds_of(directory: Path) -> float | None:
    """Read the duration of the stage that made an artifact from its manifest.

    Returns:
        Seconds, or None if the manifest has no duration.
    """
    try:
        seconds = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["seconds"]
    except (OSError, ValueError, KeyError):
        return None
    return float(seconds)
