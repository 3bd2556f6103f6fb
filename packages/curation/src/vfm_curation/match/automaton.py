"""Match in languages without spaces, and with `semantics: metaclip2`, by an Aho-Corasick automaton.

An entry matches in the spaced text (`vfm_curation.matching.spacing`) with a space on either side. No space is needed on
a side where its outermost character is punctuation or belongs to a script without spaces: Chinese ideographs, Thai,
Lao, Burmese, Khmer, Tibetan. With `metaclip` and `metaclip2` the characters come from MetaCLIP 2's released code,
which has 57 marks and no kana. With `fixed` they are all of Unicode's punctuation, the same scripts with their
extensions, and kana:

    text                    entry     metaclip*  fixed
    黒い猫の写真            猫        yes        yes
    新しいカメラで撮った    カメラ    no         yes
    新しい カメラ で        カメラ    yes        yes
    ねこが好き              ねこ      no         yes
    猫とcat，dog            dog       no         yes      the full-width comma separates
    а–б                     б         no         no
    а–б                     –б        no         yes      the released marks have the long dash and not this one
    고양이가                고양이    no         no       Korean has spaces; particles are part of their words

Source: Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062).
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import daachorse
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.plugin import UserError, store_files
from vfm_curation.matching import Semantics, spacing

AUTOMATON_FILE = "automaton.bin"
IDS_FILE = "ids.npy"
FACTS_FILE = "semantics.txt"

# Marks of ASCII, other marks, Thai to Burmese, Khmer, ideographs with their radicals and extensions. They were found by
# running the released code on every character: `packages/curation/benchmarks/released_rule.py` compares them.
_RELEASED = re.compile(
    "[!-/:-@\\[-`{-~"
    "\u2014\u2018\u2019\u201c\u201d\u3001\u3002\u3008-\u3011\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f\uff5e"
    "\u0e00-\u109f\u1780-\u17ff"
    "\u2e80-\u2fdf\u2ff0-\u2fff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ebef]"
)

# By Unicode's blocks: ideographs with their extensions and compatibility forms; Thai and Lao; Tibetan; Burmese with its
# extensions; Khmer and its symbols.
_NO_SPACE = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff\u19e0-\u19ff"
)
_KANA = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_WITHOUT_SPACES = re.compile(f"[{_NO_SPACE}{_KANA}]")


@functools.lru_cache(1 << 16)
def needs_space(character: str, semantics: Semantics) -> bool:
    """Check whether an entry that begins or ends with this character needs a space next to it."""
    if semantics != "fixed":
        return not _RELEASED.match(character)
    is_mark = character in string.punctuation or unicodedata.category(character).startswith("P")
    return not (is_mark or _WITHOUT_SPACES.match(character))


def bounded(entry: str, semantics: Semantics) -> str:
    """Build the string that a text with added spaces must contain for an entry to match.

    This is the rule in a language without spaces, and with `metaclip2` in every language.
    """
    before = " " if not entry or needs_space(entry[0], semantics) else ""
    after = " " if not entry or needs_space(entry[-1], semantics) else ""
    return f"{before}{entry}{after}"


class Automaton:
    """Finds all entries by the rule of `bounded`, overlapping and nested ones included.

    Its plain twin is `match_plain(text, entries, semantics, lambda entry: bounded(entry, semantics))`.
    """

    def __init__(self, machine: Any, ids: NDArray[np.int32], semantics: Semantics) -> None:
        self._machine = machine
        self._ids = ids.tolist()
        self.semantics = semantics

    @classmethod
    def build(
        cls,
        entries: Sequence[str],
        ids: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        *,
        semantics: Semantics = "metaclip",
    ) -> Automaton:
        """Build the automaton.

        Args:
            entries: The metadata of a language.
            ids: Id of each entry. The default is its index.
            semantics: How texts are split and which scripts have no spaces.

        Raises:
            UserError: If there are no entries, or an entry occurs twice.
        """
        if not len(entries):
            raise UserError("the metadata has no entries to match against")
        last_index = {entry: index for index, entry in enumerate(entries)}
        for index, entry in enumerate(entries):
            if last_index[entry] != index:
                raise UserError(f"metadata entry {entry!r} occurs twice, at {index} and at {last_index[entry]}")
        machine = daachorse.DoubleArrayAhoCorasick([bounded(entry, semantics).encode() for entry in entries])
        numbers = np.arange(len(entries)) if ids is None else np.asarray(ids)
        return cls(machine, numbers.astype(np.int32), semantics)

    def save(self, folder: Path) -> None:
        """Write the automaton into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / AUTOMATON_FILE).write_bytes(self._machine.serialize())
        (folder / FACTS_FILE).write_text(self.semantics, encoding="utf-8")
        np.save(folder / IDS_FILE, np.array(self._ids, np.int32))

    @classmethod
    def load(cls, folder: Path) -> Automaton:
        """Read a saved automaton."""
        with store_files.reading(folder / AUTOMATON_FILE, "an automaton"):
            machine = daachorse.DoubleArrayAhoCorasick.deserialize((folder / AUTOMATON_FILE).read_bytes())
        semantics: Any = (folder / FACTS_FILE).read_text(encoding="utf-8")
        return cls(machine, store_files.read_npy(folder / IDS_FILE), semantics)

    def match(self, texts: pa.Array | pa.ChunkedArray) -> pa.ListArray:
        """Find the ids of the entries in each text, list<int32>, ascending and distinct."""
        return _ragged(self._ids_in(text or "") for text in texts.to_pylist())

    def _ids_in(self, text: str) -> list[int]:
        hits = self._machine.find_overlapping(spacing(text, self.semantics).encode())
        return sorted({self._ids[entry] for _, _, entry in hits})


def _ragged(lists: Iterable[Sequence[int]]) -> pa.ListArray:
    """Convert lists of ids to an Arrow array, without a Python object for each id."""
    values = array("i")
    offsets = array("i", [0])
    for ids in lists:
        values.extend(ids)
        offsets.append(len(values))
    return pa.ListArray.from_arrays(np.frombuffer(offsets, np.int32), np.frombuffer(values, np.int32))
