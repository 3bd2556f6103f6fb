"""Lists of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def repeated(words: Iterable[str]) -> list[str]:
    """List the words that occur more than once, each once."""
    return [word for word, count in Counter(words).items() if count > 1]


def stripped(words: Iterable[str]) -> list[str]:
    """Remove white space around words, and leave out blank ones."""
    return list(filter(None, map(str.strip, words)))
