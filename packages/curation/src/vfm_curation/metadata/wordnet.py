"""Entries from WordNet's database files: the names of its synsets, as the paper takes them.

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.1, table 1.
"""

from __future__ import annotations

import re
from pathlib import Path

WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
NUMBERS = tuple(str(number) for number in range(100))


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
                if entry:  # not of `.22 caliber`
                    sources.setdefault(entry, "wordnet")
    return sources
