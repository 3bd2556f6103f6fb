"""Characters and words of texts are counted in their bytes as Python counts them."""

import random

import pyarrow as pa
from hypothesis import given, strategies as st

from vfm_curation.text_counts import character_and_word_counts

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \t\x1c\x85\xa0\u2003\u3000")))


def expected(texts: list[str]) -> tuple[list[int], list[int]]:
    return [len(text) for text in texts], [len(text.split()) for text in texts]


def counted(column: pa.Array | pa.ChunkedArray) -> tuple[list[int], list[int]]:
    characters, words = character_and_word_counts(column)
    return characters.tolist(), words.tolist()


@given(TEXTS, st.integers(0, 3))
def test_counts_are_python_s(texts: list[str], start: int) -> None:
    column = pa.array(texts, pa.string())
    assert counted(column[start:]) == expected(texts[start:])
    assert counted(pa.chunked_array([column[:start], column[start:]], pa.string())) == expected(texts)


def test_every_character_separates_words_exactly_where_python_says() -> None:
    texts = [f"a{chr(code)}b" for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert counted(pa.array(texts)) == expected(texts)


def test_texts_of_every_length_with_words_that_cross_64_bytes() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices("abc \t\x1c\x1f", k=length)) for length in range(200) for _ in range(5)]
    texts += ["a" * length + end for length in range(200) for end in ("", " ", " b", "é", "\x85b")]
    assert counted(pa.array([*texts, "x" * 64])) == expected([*texts, "x" * 64])
    assert counted(pa.array(texts[:1000:7])) == expected(texts[:1000:7])  # the last ones are at the end of the bytes
