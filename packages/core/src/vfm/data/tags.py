"""Labels of images, several each, made of the words in their captions: which nouns are said of a picture."""

# N images, C words

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vfm.artifacts import TaggedImages
from vfm.config import UserError

TAGS_FILE = "tags.parquet"  # one row an image, in the order of the data set: the places of its words
ENDINGS = (
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("s", ""),
)
GRAMMAR = frozenset(["can", "may", "might", "mine", "must", "while", "will"])
GERUND = 0.25  # a word in -ing is a noun where it is one so often, against its verb
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, each as it stands there."""
    return _WORD.findall(text.lower())


class Nouns:
    """Tells nouns, in the singular, by the files of a WordNet folder.

    Many words are nouns now and then (`white`, `two`, `in`). One counts as a noun here where WordNet's counts over
    tagged texts have it as a noun more often than as anything else, and one in -ing where that is a quarter as often as
    its verb (`building`, not `playing`). What WordNet does not know as a word of grammar (`while`, `will`) is left out,
    and so is what is shorter than three letters.

    Args:
        folder: with `index.noun`, `noun.exc` and `verb.exc` (irregular forms) and `cntlist.rev` (counts).

    Raises:
        UserError: a file is not there.

    Source: the detachment rules for nouns in WordNet's manual, morphy(7WN).
    """

    def __init__(self, folder: Path) -> None:
        counts = {kind: Counter[str]() for kind in ("noun", "verb", "other")}
        for line in _lines(folder / "cntlist.rev"):
            sense, _, count = line.split()
            lemma, _, rest = sense.partition("%")
            counts[{"1": "noun", "2": "verb"}.get(rest[0], "other")][lemma] += int(count)
        listed = {line.split(" ", 1)[0] for line in _lines(folder / "index.noun") if not line.startswith(" ")}
        self.irregular, irregular_verbs = (_first_two(folder / file) for file in ("noun.exc", "verb.exc"))

        def of_its_verb(word: str) -> int:
            stem = word.removesuffix("ing")
            bases = (stem, f"{stem}e", irregular_verbs.get(word, "")) if stem != word else ()
            return max((counts["verb"][base] for base in bases), default=0)

        self.nouns = {
            word
            for word, count in counts["noun"].items()
            if word in listed
            and len(word) > 2
            and word not in GRAMMAR
            and count > counts["verb"][word] + counts["other"][word]
            and count >= GERUND * of_its_verb(word)
        }

    def __call__(self, word: str) -> str | None:
        """The noun that a word is, in the singular; None where it is none."""
        if (known := self.irregular.get(word)) in self.nouns:
            return known
        if word in self.nouns:
            return word
        for ending, instead in ENDINGS:
            if word.endswith(ending) and (stem := word.removesuffix(ending) + instead) in self.nouns:
                return stem
        return None


class Listed:
    """Tells the words of a list, also with an `s` or `es` behind them."""

    def __init__(self, words: Iterable[str]) -> None:
        self.forms = {word.lower() + ending: word for ending in ("es", "s", "") for word in words}

    def __call__(self, word: str) -> str | None:
        """The listed word."""
        return self.forms.get(word)


def write_tags(file: Path, rows: Sequence[Sequence[int]]) -> None:
    """Writes which words each image has, one row an image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"tags": pa.array(rows, pa.list_(pa.int32()))}), file)


def read_tags(tags: TaggedImages) -> NDArray[np.bool_]:
    """Which words each image of the data set has, (N, C).

    Raises:
        UserError: the file is not there.
    """
    import pyarrow.parquet as pq

    file = tags.path / TAGS_FILE
    if not file.is_file():
        raise UserError(f"{tags.path}: {TAGS_FILE} is missing")
    column = pq.read_table(file)["tags"].combine_chunks()
    found = np.zeros((len(column), len(tags.class_names)), dtype=bool)
    found[column.value_parent_indices().to_numpy(), column.flatten().to_numpy()] = True
    return found


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            yield from (line for line in stream if line.strip())
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a folder of WordNet with {file.name} in it is wanted") from None


def _first_two(file: Path) -> dict[str, str]:
    return {form: base for form, base, *_ in map(str.split, _lines(file))}
