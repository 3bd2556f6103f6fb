"""The metadata: an ordered list of entries, from captions, from a file or from WordNet.

An entry's id is its place in the list, so the order is frozen: by source, commonest or strongest first, ties by the
text itself, never by a set's or a hash's whim. The hash of the ordered list names it.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1; entries from the captions themselves are
the paper's "self-curated" variant (appendix A.7), bigrams are ranked by pointwise mutual information as in section 3.1.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.artifacts import Metadata
from vfm.config import UserError
from vfm_curation.matching import tokenize

ENTRIES_FILE = "entries.parquet"
WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
NUMBERS = tuple(str(number) for number in range(100))


class Vocabulary:
    """Counts the words of captions and the pairs of neighbouring words, as the matcher would find them.

    A word is a token that is more than marks and ASCII punctuation. A pair reaches across no mark and no double space,
    since an entry of two words would not match there.
    """

    def __init__(self, captions: Iterable[str] = ()) -> None:
        self.unigrams: Counter[str] = Counter()
        self.bigrams: Counter[tuple[str, str]] = Counter()
        self.num_words = 0
        for caption in captions:
            self.add(caption)

    def add(self, caption: str) -> None:
        """Counts one caption."""
        tokens = [token if token.strip(string.punctuation) else "" for token in tokenize(caption)]
        words = list(filter(None, tokens))
        self.num_words += len(words)
        self.unigrams.update(words)
        self.bigrams.update(pair for pair in itertools.pairwise(tokens) if all(pair))

    def pmi(self, first: str, second: str) -> float:
        """Pointwise mutual information of a pair in bits: log2(count(ab) * N / (count(a) * count(b)))."""
        by_chance = self.unigrams[first] * self.unigrams[second] / self.num_words
        return math.log2(self.bigrams[first, second] / by_chance)

    def top_unigrams(self, min_count: int) -> list[str]:
        """Words seen at least `min_count` times, commonest first."""
        common = [(-count, word) for word, count in self.unigrams.items() if count >= min_count]
        return [word for _, word in sorted(common)]

    def top_bigrams(self, min_count: int) -> list[str]:
        """Pairs seen at least `min_count` times and more often than by chance, strongest PMI first.

        The minimum count matters: PMI alone is highest for pairs seen once.
        """
        seen = [pair for pair, count in self.bigrams.items() if count >= min_count]
        strength = [(-pmi, " ".join(pair)) for pair in seen if (pmi := self.pmi(*pair)) > 0]
        return [pair for _, pair in sorted(strength)]

    def entries(
        self, size: int | None = None, *, min_count: int = 5, bigram_min_count: int = 5, bigram_share: float = 0.3
    ) -> dict[str, str]:
        """Entries as entry -> source, "unigram" or "bigram", in their order: all that qualify, or the best `size`.

        Of `size` entries `bigram_share` are pairs; where one kind has too few for its share, the other fills up.
        """
        words, pairs = self.top_unigrams(min_count), self.top_bigrams(bigram_min_count)
        size = len(words) + len(pairs) if size is None else size
        num_pairs = min(len(pairs), max(round(size * bigram_share), size - len(words)))
        sources = dict.fromkeys(words[: size - num_pairs], "unigram")
        return sources | dict.fromkeys(pairs[:num_pairs], "bigram")


def read_entries(path: str | Path, *, column: str | None = None) -> dict[str, str]:
    """Entries of a file or a WordNet folder as entry -> source, in the file's order.

    Args:
        path: `.txt` (one entry a line), `.json` (a list of strings, as MetaCLIP's metadata.json), `.csv`, `.tsv`, or
            a folder with WordNet's `data.noun`, `data.verb`, `data.adj` and `data.adv`.
        column: of a csv or tsv with a header line; default: the first column of a file without one.

    Raises:
        UserError: the file is missing, of another kind, or not what its name says.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return wordnet_entries(path)
        found = list(_read_file(path, column))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as {path.suffix[1:]} in UTF-8: {error}") from None
    return dict.fromkeys(filter(usable, found), path.name)


def _read_file(path: Path, column: str | None) -> Iterator[str]:
    if path.suffix == ".json":
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{path}: should hold a JSON list of strings")
        yield from entries
    elif path.suffix == ".txt":
        yield from re.split(r"\r?\n", path.read_text(encoding="utf-8"))
    elif path.suffix in (".csv", ".tsv"):
        yield from _read_table(path, column)
    else:
        raise UserError(f"{path}: metadata is read from .txt, .json, .csv, .tsv or a folder of WordNet files")


def _read_table(path: Path, column: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        place = 0
        if column is not None:
            header = next(rows, [])
            if column not in header:
                raise UserError(f"{path}: has no column {column!r}; its columns: {', '.join(header)}")
            place = header.index(column)
        for row in rows:
            yield row[place] if len(row) > place else ""


def wordnet_entries(folder: Path) -> dict[str, str]:
    """WordNet's synset names with the numbers "0" to "99", as in the paper: 86,654 entries from WordNet 3.0.

    A synset is named by its first word in lower case, cut at the first dot, `_` turned into a space.
    """
    sources = dict.fromkeys(NUMBERS, "number")
    for name in WORDNET_FILES:
        with (folder / name).open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(" "):  # the licence
                    continue
                word = re.sub(r"\((a|p|ip)\)$", "", line.split(" ", 5)[4])  # where an adjective may stand
                entry = word.lower().split(".")[0].replace("_", " ")
                if usable(entry):
                    sources.setdefault(entry, "wordnet")
    return sources


def usable(entry: str) -> bool:
    """Whether a string may be an entry: not empty, and not one ASCII punctuation character alone."""
    return entry not in {"", *string.punctuation}


def entries_sha256(entries: Iterable[str]) -> str:
    """Hash of the ordered entries: SHA-256 of their JSON list."""
    return hashlib.sha256(json.dumps(list(entries)).encode()).hexdigest()


def save_entries(directory: Path, sources: Mapping[str, str]) -> None:
    """Writes the entries, in order and with the source of each, as the bulk of a `Metadata` artifact."""
    table = pa.table({"entry": list(sources), "source": list(sources.values())})
    pq.write_table(table, directory / ENTRIES_FILE, compression="zstd")


def load_entries(metadata: Metadata) -> list[str]:
    """The entries of an artifact; an entry's id is its place here."""
    entries: list[str] = pq.read_table(metadata.path / ENTRIES_FILE)["entry"].to_pylist()
    return entries
