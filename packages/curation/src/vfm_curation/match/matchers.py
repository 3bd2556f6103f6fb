"""Matchers of a metadata's languages. They are built once in a folder, and every process loads the ones it needs.

Texts of a language are matched against the shared entries (language "") and the entries of that language. Entries of
languages written without spaces have an automaton, all others a table of token runs. With `semantics: metaclip2` an
additional automaton holds entries that need no space on one side, because no token run finds them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.plugin import store_files
from vfm_curation.match.automaton import Automaton, bounded
from vfm_curation.match.token_table import TokenTable
from vfm_curation.matching import FIXED_BLANKS, FIXED_MARKS, Semantics, between_spaces
from vfm_curation.metadata.entries import SHARED
from vfm_curation.metadata.tokenizers import writes_spaces

FACTS_FILE = "matchers.json"
TABLE, AUTOMATON = "table", "automaton"  # folders of a language's matchers, one or both


class Matchers:
    """Matches texts of several languages, each against its entries.

    Args:
        folder: Folder written by `Matchers.build`. A language's matcher is loaded at its first text.
        verify: Compare the bytes of entries that a table's keys match. An automaton is exact without.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        facts = store_files.read_record(folder / FACTS_FILE, "languages", "semantics")
        self.languages: list[str] = facts["languages"]
        self._folder = folder
        self._verify = verify
        self._semantics: Semantics = facts["semantics"]
        self._loaded: dict[str, list[TokenTable | Automaton]] = {}

    @classmethod
    def build(
        cls, folder: Path, entries: pa.Table, *, semantics: Semantics, languages: Iterable[str] | None = None
    ) -> None:
        """Build the matchers of the shared entries and of the languages that have entries.

        Args:
            folder: Folder to save them in. FACTS_FILE is written last.
            entries: Columns language and entry. An entry's id is its row number.
            semantics: How texts are split.
            languages: Languages of the texts. The default is all.

        Raises:
            UserError: If an entry occurs twice in a language.
        """
        built = entries["language"].unique().to_pylist()
        if languages is not None:
            built = [language for language in built if language in {SHARED, *languages}]
        for number, language in enumerate(built):
            ids = np.flatnonzero(pc.equal(entries["language"], language).to_numpy())
            of_language = entries["entry"].take(ids).to_pylist()
            in_table = _between_spaces(of_language, language, semantics)
            if in_table.any():
                TokenTable.build(_chosen(of_language, in_table), ids[in_table]).save(folder / str(number) / TABLE)
            if not in_table.all():
                automaton = Automaton.build(_chosen(of_language, ~in_table), ids[~in_table], semantics=semantics)
                automaton.save(folder / str(number) / AUTOMATON)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"semantics": semantics, "languages": built}
        (folder / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")

    def match(self, texts: pa.ChunkedArray, languages: pa.ChunkedArray) -> pa.ListArray:
        """Find the ids of the entries in each text, list<int32>, ascending and distinct, by the text's language."""
        indices = np.arange(len(texts))
        parts: list[tuple[NDArray[np.int64], pa.ListArray]] = []
        if SHARED in self.languages:
            parts += [(indices, ids) for ids in self._match(texts, SHARED)]
        for language in languages.unique().to_pylist():
            if language != SHARED and language in self.languages:
                chosen = pc.equal(languages, language)
                parts += [(indices[chosen.to_numpy()], ids) for ids in self._match(texts.filter(chosen), language)]
        return _merged(parts, len(texts))

    def _match(self, texts: pa.ChunkedArray, language: str) -> Iterator[pa.ListArray]:
        """Yield the ids that each matcher of a language finds."""
        if language not in self._loaded:
            folder = self._folder / str(self.languages.index(language))
            kinds = ((folder / TABLE, TokenTable), (folder / AUTOMATON, Automaton))
            self._loaded[language] = [kind.load(saved) for saved, kind in kinds if saved.is_dir()]
        for matcher in self._loaded[language]:
            if isinstance(matcher, Automaton):
                yield matcher.match(texts)
            else:
                if self._semantics == "fixed":
                    spaced = separate_fixed_marks(texts)
                else:
                    spaced = texts
                yield matcher.match(spaced, verify=self._verify)


def _between_spaces(entries: Sequence[str], language: str, semantics: Semantics) -> NDArray[np.bool_]:
    """Check which entries of a language match between two spaces, and so as a run of tokens."""
    if semantics != "metaclip2" or not writes_spaces(language):
        return np.full(len(entries), writes_spaces(language))
    return np.array([bounded(entry, semantics) == between_spaces(entry) for entry in entries], dtype=np.bool_)


def _chosen(entries: Sequence[str], chosen: NDArray[np.bool_]) -> list[str]:
    return [entries[index] for index in np.flatnonzero(chosen)]


def separate_fixed_marks(texts: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Put spaces around the marks that only `semantics: fixed` splits at. `TokenTable` splits at the others itself."""
    texts = pc.replace_substring_regex(texts, f"([{re.escape(FIXED_MARKS)}])", r" \1 ")
    return pc.replace_substring_regex(texts, f"[{FIXED_BLANKS}]", " ")


def _merged(parts: Sequence[tuple[NDArray[np.int64], pa.ListArray]], num_texts: int) -> pa.ListArray:
    """Merge the ids of each text. A part has (indices of its texts, their ids)."""
    if len(parts) == 1 and len(parts[0][0]) == num_texts:
        return parts[0][1]
    numbers = [np.repeat(indices, np.diff(ids.offsets.to_numpy())) for indices, ids in parts]
    texts = np.concatenate([np.zeros(0, np.int64), *numbers])
    values = np.concatenate([np.zeros(0, np.int32), *(ids.values.to_numpy() for _, ids in parts)])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(texts, minlength=num_texts))]).astype(np.int32)
    # Sorted by text, then by id.
    return pa.ListArray.from_arrays(offsets, values[np.lexsort((values, texts))])
