"""Read the names of WordNet's synsets from its database files as entries, as in the paper.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1, table 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vfm.plugin import UserError

WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
NUMBERS = tuple(str(number) for number in range(100))


def wordnet_entries(path: Path, *, numbers: bool = True) -> dict[str, str]:
    """Read WordNet's synset names and add the numbers "0" to "99", as in the paper.

    WordNet 3.0 gives 86,654 entries. The name of a synset is its first word in lower case, cut at the first dot, with
    spaces for `_`. The words of a wordnet of another language are taken as they are.

    Args:
        path: Folder with WordNet's database files, or a `.tab` file of the Open Multilingual Wordnet.
        numbers: Put the numbers first.

    Returns:
        Entries with their sources.

    Raises:
        UserError: If a file is missing or is not a file of WordNet.
    """
    sources = dict.fromkeys(NUMBERS, "number") if numbers else {}
    if path.suffix == ".tab":
        files = [path]
        words = _words_of_tab
    else:
        files = [path / name for name in WORDNET_FILES]
        words = _names_of_synsets
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                for word in words(lines):
                    sources.setdefault(word, "wordnet")
        except FileNotFoundError:
            raise UserError(f"{file}: no such file") from None
        except (UnicodeDecodeError, IndexError) as error:
            raise UserError(f"{file}: not a file of WordNet: {error}") from None
    sources.pop("", None)  # what is left of `.22 caliber`
    return sources


def _names_of_synsets(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith(" "):  # the licence is indented
            word = re.sub(r"\((a|p|ip)\)$", "", line.split(" ", 5)[4])  # the syntactic marker of adjectives
            yield word.lower().split(".")[0].replace("_", " ")


def _words_of_tab(lines: Iterable[str]) -> Iterator[str]:
    """Yield the words of lines like `00001740-n TAB fra:lemma TAB entité`. Others are definitions or examples."""
    for line in lines:
        columns = line.rstrip("\n").split("\t")
        if not line.startswith("#") and columns[1].rsplit(":", 1)[-1] == "lemma":
            yield columns[2].replace("_", " ")
