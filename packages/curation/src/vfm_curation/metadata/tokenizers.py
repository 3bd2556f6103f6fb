"""Words of a text for counting, as a list in which "" stands where no pair of words may reach across.

Four ways: `caption_words` as the matcher splits captions, `prose_words` for running text, `characters` and `icu_words`
for languages that write no space between words.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vfm_curation.entry_sources.base import TokenizerName
from vfm_curation.matching import tokenize

Split = Callable[[str], list[str]]
BREAK = ""

# Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and their like, whatever follows: zh-classical, zh_CN, my_MM.
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
class Tokenizer:
    """How a text is split, and what stands between the two words of an entry."""

    split: Split
    joiner: str = " "

    def __call__(self, text: str) -> list[str]:
        return self.split(text)


def writes_spaces(language: str) -> bool:
    """Whether a language, by its code with or without region and script, writes spaces between words."""
    return re.split("[-_]", language.lower())[0] not in NO_SPACE_LANGUAGES


def find_tokenizer(name: TokenizerName, language: str, *, prose: bool) -> Tokenizer:
    """The tokenizer of a name; `auto` takes characters in languages without spaces, words in all others.

    Args:
        name: as in a recipe.
        language: of the texts.
        prose: whether they are running text; else captions, whose words are the matcher's.

    Raises:
        ModuleNotFoundError: icu without the extra of that name.
    """
    if name == "auto":
        name = "words" if writes_spaces(language) else "characters"
    if name == "words":
        return Tokenizer(prose_words if prose else caption_words)
    if name == "characters":
        return Tokenizer(characters, joiner="")
    import icu4py.breakers  # noqa: F401 - a missing package is told before anything is read

    return Tokenizer(functools.partial(icu_words, language=language), joiner="")


def caption_words(text: str) -> list[str]:
    """The matcher's tokens; those that are marks or ASCII punctuation alone are breaks, as are double spaces."""
    return [token if token.strip(string.punctuation) else BREAK for token in tokenize(text)]


def prose_words(text: str) -> list[str]:
    """The matcher's tokens without the punctuation around them, which breaks; a line end breaks too."""
    return list(itertools.chain.from_iterable(map(_words_of_line, text.splitlines())))


def _words_of_line(line: str) -> Iterator[str]:
    for token in tokenize(" ".join(line.split())):
        if token and token[0].isalnum() and token[-1].isalnum():  # most are
            yield token
            continue
        first, last = 0, len(token)
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
    """Each character of a script without spaces, with the marks that combine with it, is a word.

    So is each run of other letters. No pair reaches across a space.
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
    """Words by ICU's dictionaries (Chinese, Japanese, Thai, Lao, Khmer, Burmese). No pair reaches across a space."""
    from icu4py.breakers import WordBreaker

    words: list[str] = []
    for chunk in text.split():
        pieces = [chunk[start:end] for start, end in WordBreaker(chunk, language or "en").segments()]
        words += [BREAK if all(map(_is_mark, piece)) else piece for piece in pieces]
        words.append(BREAK)
    return words


@functools.lru_cache(1 << 16)
def _is_mark(char: str) -> bool:
    """Punctuation, symbols, separators and control characters."""
    return unicodedata.category(char)[0] in "PSZC"
