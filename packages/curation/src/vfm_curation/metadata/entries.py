"""Merge entries from sources in a fixed order. A hash identifies the list, and one Parquet file stores it.

An entry's id is its row number, counted over all languages. An entry of language "" is for texts of any language.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1; Chuang et al. 2025, MetaCLIP 2
(arXiv:2507.22062) for one list for each language.
"""

from __future__ import annotations

import hashlib
import json
import string
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.plugin import Metadata, store_files

ENTRIES_FILE = "entries.parquet"
SHARED = ""  # the language of entries for texts of any language
MAX_LENGTH = 256  # characters; MetaCLIP 2 drops longer entries too
BATCH = 1 << 20  # rows of a row group
Row = tuple[str, str, str]  # language, entry, source


class EntryList:
    """Merges sources in the order of `add`: an entry that several sources have belongs to the first.

    Args:
        size: Largest number of entries of each language. None means no limit.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self.left_out: list[tuple[Row, str]] = []  # with the reason, and without entries beyond the size
        self.num_beyond = 0
        self._sources: dict[str, dict[str, str]] = {}

    def add(self, entries: Mapping[str, str], language: str = SHARED) -> None:
        """Add entries (entry -> source) in one language. They must be usable, new and within the size."""
        accepted = self._sources.setdefault(language, {})
        shared = self._sources.get(SHARED, {})
        for entry, source in entries.items():
            earlier = accepted.get(entry) or shared.get(entry)
            reason = unusable_reason(entry)
            if not reason and earlier:
                reason = f"also in an earlier source: {earlier}"
            if reason:
                shown = entry.encode("utf-8", "replace").decode()  # a lone surrogate cannot be encoded
                self.left_out.append(((language, shown, source), reason))
            elif self.size is not None and len(accepted) >= self.size:
                self.num_beyond += 1
            else:
                accepted[entry] = source

    def __len__(self) -> int:
        return sum(map(len, self._sources.values()))

    def __iter__(self) -> Iterator[Row]:
        """Yield rows by id.

        Languages are in the order of `add`, and the entries of each in the order of their sources.
        """
        # A dict keeps the order of insertion, so ids are stable.
        for language, sources in self._sources.items():
            yield from ((language, entry, source) for entry, source in sources.items())

    @property
    def languages(self) -> list[str]:
        """Languages that have an entry."""
        return [language for language, sources in self._sources.items() if sources]


def unusable_reason(entry: str) -> str | None:
    """Explain why a string cannot be an entry.

    The papers leave out empty strings, single ASCII and full-width marks, and strings longer than 256 characters. JSON
    may contain half a character (a lone surrogate). No UTF-8 text has one.

    Returns:
        The reason, or None if it can be an entry.
    """
    if not entry:
        return "empty"
    if any("\ud800" <= sign <= "\udfff" for sign in entry):
        return "half a character"
    if len(entry) == 1 and (entry in string.punctuation or unicodedata.category(entry).startswith("P")):
        return "lone punctuation"
    if len(entry) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    return None


def entries_sha256(rows: Iterable[Row]) -> str:
    """Compute the SHA-256 of the ordered entries and their languages, over a JSON line `[language, entry]` for each."""
    digest = hashlib.sha256()
    for language, entry, _ in rows:
        digest.update(f"{json.dumps([language, entry])}\n".encode())
    return digest.hexdigest()


def save_entries(directory: Path, rows: Iterable[Row]) -> None:
    """Write the entries as the file of a `Metadata` artifact.

    The columns are language, entry and source. The row number is the id.
    """
    schema = pa.schema([(name, pa.string()) for name in ("language", "entry", "source")])
    with pq.ParquetWriter(directory / ENTRIES_FILE, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in _batches(rows):
            writer.write_table(pa.table(list(zip(*batch, strict=True)), schema=schema))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def load_entries(metadata: Metadata) -> pa.Table:
    """Read the entries of an artifact.

    Returns:
        Table of strings with the columns language, entry and source. An entry's id is its row number.
    """
    return store_files.read_parquet(metadata.path / ENTRIES_FILE)


def ids_for(entries: pa.Table, language: str) -> NDArray[np.int64]:
    """Find the ids of the entries that apply to texts in a language.

    They are entries of that language and shared entries.
    """
    chosen = pc.is_in(entries["language"], pa.array([SHARED, language]))
    ids: NDArray[np.int64] = np.flatnonzero(chosen.to_numpy())
    return ids
