"""Filter of texts by WordNet's synsets: a noun of the text must have its first sense in the list."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.plugin import UserError
from vfm_curation.filters.list_filters import Synsets
from vfm_curation.filters.lists.lists import read_list, words_of

LONGEST = 4  # words of a noun, such as `great white shark`
# WordNet's rules for plural nouns. A form counts if it is a noun of its index.
ENDINGS = (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
           ("ies", "y"))  # fmt: skip


def synset_passes(config: Synsets, table: pa.Table) -> NDArray[np.bool_]:
    """Check the nouns of the column `caption`."""
    wanted, all_nouns = _wanted_nouns(config.path, config.wordnet)

    def passes(text: str) -> bool:
        words = words_of(text.casefold())
        for length in range(1, LONGEST + 1):
            for start in range(len(words) - length + 1):
                run = "_".join(words[start : start + length])
                noun = next(filter(all_nouns.__contains__, _forms(run)), None)
                if noun in wanted:
                    return True
        return False

    return np.array([passes(text) for text in table["caption"].to_pylist()], dtype=np.bool_)


def _forms(word: str) -> Iterator[str]:
    """Yield a word and its possible singular forms."""
    yield word
    for ending, single in ENDINGS:
        if word.endswith(ending):
            yield word[: -len(ending)] + single


@functools.lru_cache(maxsize=2)
def _wanted_nouns(path: str, wordnet: str) -> tuple[frozenset[str], frozenset[str]]:
    """Read the nouns whose first sense is among the synsets, and all nouns."""
    offsets = set(map(_offset, read_list(path)))
    index = Path(wordnet) / "index.noun"
    wanted = set[str]()
    all_nouns = set[str]()
    try:
        with index.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.startswith(" "):  # the licence is indented
                    # lemma, pos, synsets, pointers, their symbols, senses, tagged senses, then offsets by frequency
                    columns = line.split()
                    all_nouns.add(columns[0])
                    if columns[6 + int(columns[3])] in offsets:
                        wanted.add(columns[0])
    except FileNotFoundError:
        raise UserError(f"{index}: no such file") from None
    except (UnicodeDecodeError, IndexError, ValueError) as error:
        raise UserError(f"{index}: not WordNet's index of nouns: {error}") from None
    if not wanted:
        raise UserError(f"{path}: none of its {len(offsets)} synsets is the first sense of a noun in {index}")
    return frozenset(wanted), frozenset(all_nouns)


def _offset(item: str) -> str:
    """Extract the offset from a WordNet ID, n02084071 or the number alone."""
    offset = re.fullmatch(r"n?(\d{8})", item.split()[0])
    if not offset:
        raise UserError(f"synsets: expected a WordNet ID such as n02084071, got {item!r}")
    return offset[1]
