"""Matching: the trie equals the substring definition, on hostile text and on real captions."""

import functools
import gzip
import itertools
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given, settings, strategies as st

from vfm.plugin import UserError
from vfm_curation.match.automaton import bounded
from vfm_curation.matching import (
    FIXED_BLANKS,
    FIXED_MARKS,
    MARKS,
    Matcher,
    Semantics,
    between_spaces,
    dead_entries,
    dead_reason,
    match_plain,
    spacing,
)
from vfm_curation.metadata import Vocabulary

CAPTIONS = Path(__file__).parents[4] / "shared" / "data" / "captions_en.tsv.gz"

# Double spaces, no-break and ideographic spaces, tabs, line ends, marks, full-width marks, emoji, CJK, accents.
BLANKS = [" ", " ", " ", "\u00a0", "\u3000", "\t", "\n", "\r"]
ALPHABET = ["a", "b", "A", *BLANKS, *MARKS, "，", "(", "'", "猫", "😀", "\u0301"]
hostile = st.lists(st.sampled_from(ALPHABET), max_size=14).map("".join)
hostile_entries = st.lists(st.lists(st.sampled_from(ALPHABET), max_size=5).map("".join), min_size=1, unique=True)


@settings(max_examples=400)
@given(hostile, hostile_entries)
@example("a  b", ["a b", "a", "", "a  b"])
@example("", ["", " "])
@example("a, b", ["a ,", ", b", ",", ",  b", ""])
def test_trie_equals_the_substring_definition(text: str, entries: list[str]) -> None:
    assert Matcher(entries).match(text) == match_plain(text, entries)


def test_trie_equals_the_definition_when_entries_are_cut_from_the_texts() -> None:
    """Random entries seldom match; here all token runs of all texts over a small alphabet are entries."""
    texts = ["".join(letters) for letters in itertools.product("ab ,", repeat=4)]
    tokens = [spacing(text).split(" ")[1:-1] for text in texts]
    entries = sorted({" ".join(t[i:j]) for t in tokens for i in range(len(t)) for j in range(i + 1, len(t) + 1)})
    matcher = Matcher(entries)
    for text in texts:
        assert matcher.match(text) == match_plain(text, entries)


@pytest.mark.skipif(not CAPTIONS.exists(), reason="needs the real captions")
def test_trie_equals_the_definition_on_real_captions() -> None:
    with gzip.open(CAPTIONS, "rt", encoding="utf-8") as lines:
        captions = [line.rstrip("\n").split("\t", 1)[1] for line in itertools.islice(lines, 0, 212_000, 106)]
    entries = list(Vocabulary(captions).entries(4000, min_count=1, bigram_min_count=1, bigram_share=0.3))
    matcher = Matcher(entries)
    found = [matcher.match(caption) for caption in captions]
    assert found == [match_plain(caption, entries) for caption in captions]
    assert len(captions) == 2000
    assert sum(map(len, found)) > 10_000


@pytest.mark.parametrize(
    ("text", "entry", "matches"),
    [
        ("a dog!", "dog", True),
        ("(dog)", "dog", False),
        ("dog/cat dog's", "dog", False),
        ("Dog", "dog", False),
        ("foo, bar", "foo , bar", False),  # comma and space leave two spaces
        ("foo,bar", "foo , bar", True),
        ("a\u00a0b", "a", False),
        ("a\tb\nc", "b c", True),
        ("新しい カメラ で", "カメラ", True),
        ("新しいカメラで", "カメラ", False),
        ("cat，dog", "cat", False),
        ("made in the U.S.", "U.S.", False),
        ("New York City", "York City", True),
    ],
)
def test_papers_word_boundaries(text: str, entry: str, matches: bool) -> None:
    assert match_plain(text, [entry]) == ([0] if matches else [])
    assert Matcher([entry]).match(text) == ([0] if matches else [])


def test_nested_and_overlapping_entries_all_match_each_once() -> None:
    entries = ["new york city", "new york", "york city", "new", "city hall"]
    assert Matcher(entries).match("new york city new york city hall") == [0, 1, 2, 3, 4]


def plain(text: str, entries: list[str], semantics: Semantics) -> list[int]:
    """Return the entries in a text by the definition of each semantics."""
    rule = functools.partial(bounded, semantics=semantics) if semantics == "metaclip2" else between_spaces
    return match_plain(text, entries, semantics, rule)


def witness(entry: str, semantics: Semantics) -> str:
    """Return the text most likely to match the entry: without the spaces that `spacing` adds."""
    pieces = entry.split(" ")
    marks = [*MARKS, *FIXED_MARKS] if semantics == "fixed" else [*MARKS]
    gaps = ["" if left in marks or right in marks else " " for left, right in itertools.pairwise(pieces)]
    return "".join(itertools.chain.from_iterable(zip(pieces, [*gaps, ""], strict=True)))


@pytest.mark.parametrize("semantics", get_args(Semantics))
@settings(max_examples=400)
@given(
    entry=st.lists(st.sampled_from([*ALPHABET, *FIXED_MARKS[-4:], *FIXED_BLANKS]), min_size=1, max_size=6).map("".join)
)
def test_entries_that_are_not_dead_match_some_text(semantics: Semantics, entry: str) -> None:
    found = plain(witness(entry, semantics), [entry], semantics)
    assert (dead_reason(entry, semantics) is None) == (found == [0])


@pytest.mark.parametrize("semantics", get_args(Semantics))
@settings(max_examples=400)
@given(text=hostile, entries=hostile_entries)
def test_dead_entries_never_match(semantics: Semantics, text: str, entries: list[str]) -> None:
    assert not set(plain(text, entries, semantics)) & set(dead_entries(entries, semantics))


def test_duplicate_entries_are_rejected() -> None:
    with pytest.raises(UserError, match="'cat' occurs twice, at 0 and at 2"):
        Matcher(["cat", "dog", "cat"])


def test_empty_metadata_is_rejected() -> None:
    with pytest.raises(UserError, match="has no entries"):
        Matcher([])
