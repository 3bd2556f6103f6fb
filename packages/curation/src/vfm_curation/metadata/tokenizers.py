"""Split texts into words for counting. An empty string in the list of words is a break that no bigram crosses.

There are four ways: `caption_words` splits like the matcher, `prose_words` is for running text, `characters` and
`icu_words` are for languages written without spaces between words.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

from vfm_curation.matching import tokenize
from vfm_curation.metadata.tokenizer_parts import Tokenizer

Split = Callable[[str], list[str]]
BREAK = ""

# Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and related languages, without region: zh-classical, zh_CN.
NO_SPACE_LANGUAGES = frozenset(
    {
        *("zh", "yue", "wuu", "gan", "lzh", "cdo", "hak", "nan"),
        *("ja", "ryu", "th", "lo", "km", "my", "mnw", "shn", "bo", "dz"),
    }
)
# CJK radicals, kana, ideographs; Thai, Lao, Tibetan; Burmese; Khmer; ideographs beyond the first plane.
_NO_SPACE = re.compile(
    "[\u2e80-\u2fff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class WordSplitter:
    """Rule that splits a text, and the string between the two words of a bigram entry."""

    split: Split
    joiner: str = " "

    def __call__(self, text: str) -> list[str]:
        """Split a text into words."""
        return self.split(text)


def writes_spaces(language: str) -> bool:
    """Check whether a language, by its code with or without region and script, is written with spaces."""
    return re.split("[-_]", language.lower())[0] not in NO_SPACE_LANGUAGES


def built_in(config: Tokenizer, language: str, *, prose: bool) -> WordSplitter:
    """Create the tokenizer of this package that a configuration names, as `find_tokenizer` does."""
    return find_tokenizer(config.type, language, prose=prose)


def find_tokenizer(name: str, language: str, *, prose: bool) -> WordSplitter:
    """Create a tokenizer by name.

    Args:
        name: auto, words, characters or icu. `auto` means characters for languages without spaces, and words for all
            others.
        language: Language of the texts.
        prose: True for running text. False for captions, split like the matcher splits them.

    Raises:
        ModuleNotFoundError: If the name is icu and the extra `icu` is not installed.
    """
    if name == "auto":
        name = "words" if writes_spaces(language) else "characters"
    if name == "words":
        return WordSplitter(prose_words if prose else caption_words)
    if name == "characters":
        return WordSplitter(characters, joiner="")
    import_module("icu4py.breakers")  # the extra `icu`; fail before any text is read

    return WordSplitter(functools.partial(icu_words, language=language), joiner="")


def caption_words(text: str) -> list[str]:
    """Split like the matcher. Tokens of only marks or ASCII punctuation become breaks, as do double spaces."""
    return [token if token.strip(string.punctuation) else BREAK for token in tokenize(text)]


def prose_words(text: str) -> list[str]:
    """Split like the matcher and strip punctuation around words. Punctuation and line ends become breaks."""
    return list(itertools.chain.from_iterable(map(_words_of_line, text.splitlines())))


def _words_of_line(line: str) -> Iterator[str]:
    for token in tokenize(" ".join(line.split())):
        if token and token[0].isalnum() and token[-1].isalnum():  # the fast path: most tokens
            yield token
            continue
        first = 0
        last = len(token)
        while first < last and _is_mark(token[first]):
            first += 1
        while first < last and _is_mark(token[last - 1]):
            last -= 1
        if first:
            yield BREAK
        yield token[first:last]
        if last < len(token):
            yield BREAK
    yield BREAK


def characters(text: str) -> list[str]:
    """Split into the characters of scripts without spaces, with their combining marks, and runs of other letters.

    A space is a break.
    """
    return list(itertools.chain.from_iterable(map(_characters_of, text.split())))


def _characters_of(chunk: str) -> Iterator[str]:
    word = ""
    for char in chunk:
        if _is_mark(char):
            yield from (word, BREAK)
            word = ""
        elif unicodedata.category(char)[0] == "M":
            word += char
        elif _NO_SPACE.match(char) or _NO_SPACE.match(word):
            yield word
            word = char
        else:
            word += char
    yield from (word, BREAK)


def icu_words(text: str, language: str) -> list[str]:
    """Split by ICU's dictionaries (Chinese, Japanese, Thai, Lao, Khmer, Burmese). A space is a break."""
    from icu4py.breakers import WordBreaker  # the extra `icu`

    words: list[str] = []
    for chunk in text.split():
        for start, end in WordBreaker(chunk, language or "en").segments():
            piece = chunk[start:end]
            words.append(BREAK if all(map(_is_mark, piece)) else piece)
        words.append(BREAK)
    return words


@functools.lru_cache(1 << 16)
def _is_mark(char: str) -> bool:
    """Check whether a character is punctuation, a symbol, a separator or a control character."""
    return unicodedata.category(char)[0] in "PSZC"
