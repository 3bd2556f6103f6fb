"""Articles, pronouns, auxiliaries, conjunctions, prepositions and particles of some languages.

They are the closed classes of each language's grammar, written down for this package in `function_words.json`. A
function word, or a bigram that contains one, says nothing about an image.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")


@functools.cache
def word_lists() -> Mapping[str, frozenset[str]]:
    """Load the function words of each language that has a list, in lower case."""
    lists = json.loads(FILE.read_text(encoding="utf-8"))
    return {language: frozenset(" ".join(lines).split(" ")) for language, lines in lists.items()}


def base_language(language: str) -> str:
    """Strip region and script from a language code: `en_GB` gives `en`."""
    return language.lower().replace("_", "-").split("-")[0]


def function_words(*languages: str) -> frozenset[str]:
    """Look up the function words of languages in lower case, by their codes with or without region.

    There are none for a language without a list.
    """
    return frozenset().union(*(word_lists().get(base_language(language), ()) for language in languages))
