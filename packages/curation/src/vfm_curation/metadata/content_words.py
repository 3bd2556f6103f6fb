"""Separate content words and names in captions from words that say nothing about an image.

English content words are names and the words that WordNet knows in some form, where its files are installed. In other
languages, and without WordNet, all words count except function words.

Source: the rules that find a base form, and the lists of exceptions to them, are WordNet's, morphy(7WN).
"""

from __future__ import annotations

import re
from pathlib import Path

from vfm.plugin import UserError
from vfm_curation.metadata.function_words import function_words

KINDS = ("noun", "verb", "adj", "adv")
ENDINGS = {
    "noun": (
        ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
_POSSESSIVE = re.compile("['’]s?$")


class WordNetForms:
    """Words that WordNet knows, in their base form or inflected.

    Args:
        folder: Folder with WordNet's `index.noun`, `noun.exc` and the same files for verb, adj and adv.

    Raises:
        UserError: If a file is missing or not text.
    """

    def __init__(self, folder: Path) -> None:
        self._known = dict[str, set[str]]()
        self._irregular = set[str]()
        for kind in KINDS:
            index = _lines(folder / f"index.{kind}")
            exceptions = _lines(folder / f"{kind}.exc")
            self._known[kind] = {line.split(" ", 1)[0] for line in index if not line.startswith(" ")}
            self._irregular.update(line.split(" ", 1)[0] for line in exceptions)

    def __contains__(self, word: str) -> bool:
        """Check whether a word in lower case is a base form or has one."""
        if word in self._irregular or any(word in known for known in self._known.values()):
            return True
        for kind in KINDS:
            for ending, replacement in ENDINGS[kind]:
                if word.endswith(ending) and word.removesuffix(ending) + replacement in self._known[kind]:
                    return True
        return False


class ContentWords:
    """Tests whether words of a language are content words or names.

    Args:
        language: Code of the language.
        wordnet: WordNet's words, for English.
    """

    def __init__(self, language: str, wordnet: WordNetForms | None = None) -> None:
        self._function_words = function_words(language)
        self._wordnet = wordnet

    def __call__(self, word: str) -> bool:
        """Check whether a word, or each word of a bigram, is a content word or a name."""
        return all(map(self._is_content, word.split(" ")))

    def _is_content(self, word: str) -> bool:
        lower = word.lower()
        stem = _POSSESSIVE.sub("", lower)
        if {lower, stem} & self._function_words or not any(map(str.isalpha, stem)):
            return False
        if self._wordnet is None:
            return True
        parts = stem.split("-")
        is_name = word[0].isupper() and all(part.isalpha() for part in parts)
        return is_name or stem in self._wordnet or any(part in self._wordnet for part in parts[1:] if len(part) > 2)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; expected WordNet's folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a file of WordNet: {error}") from None
