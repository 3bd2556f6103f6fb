"""Languages without spaces: the automaton equals the definition of the boundary rule, released and fixed."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings, strategies as st

from vfm.plugin import UserError
from vfm_curation.match.automaton import Automaton, bounded, needs_space
from vfm_curation.matching import Semantics, match_plain

ALPHABET = [
    "a",
    "b",
    " ",
    " ",
    "\u3000",
    "\t",
    ",",
    "!",
    "，",
    "。",
    "「",
    "」",
    '"',
    "猫",
    "写",
    "カ",
    "ね",
    "ไ",
    "ມ",
    "မ",
    "ក",
    "བ",
    "고",
    "😀",
]
hostile = st.lists(st.sampled_from(ALPHABET), max_size=14).map("".join)
hostile_entries = st.lists(
    st.lists(st.sampled_from(ALPHABET), max_size=4).map("".join), min_size=1, max_size=10, unique=True
)


def plain(text: str, entries: list[str], semantics: Semantics) -> list[int]:
    return match_plain(text, entries, semantics, lambda entry: bounded(entry, semantics))


@pytest.mark.parametrize("semantics", ["metaclip", "metaclip2", "fixed"])
@settings(max_examples=200)
@given(texts=st.lists(hostile, max_size=5), entries=hostile_entries)
@example(texts=["猫写猫"], entries=["猫", "猫写", "写猫", "猫写猫", "", " ", "猫 "])
def test_automaton_equals_the_definition(semantics: Semantics, texts: list[str], entries: list[str]) -> None:
    expected = [plain(text, entries, semantics) for text in texts]
    assert Automaton.build(entries, semantics=semantics).match(pa.array(texts, pa.string())).to_pylist() == expected


@pytest.mark.parametrize(
    ("text", "entry", "released", "mended"),
    [
        ("黒い猫の写真", "猫", True, True),
        ("新しいカメラで撮った", "カメラ", False, True),
        ("新しい カメラ で", "カメラ", True, True),
        ("ねこが好き", "ねこ", False, True),
        ("猫とcat，dog", "dog", False, True),
        ("cat，dog", "cat", False, True),
        ("cat,dog", "cat", True, True),
        ("「猫」", "猫", True, True),
        ("「cat」", "cat", False, True),
        ("a\u3000cat", "cat", False, True),
        ("made in the U.S.", "U.S.", False, False),
        ("고양이가", "고양이", False, False),
        ("แมวดำ", "แมว", True, True),
        ("猫cat", "cat", False, False),
        ("猫猫", "猫猫", True, True),
    ],
)
def test_released_and_fixed_boundaries(text: str, entry: str, released: bool, mended: bool) -> None:
    for semantics, matches in (("metaclip", released), ("fixed", mended)):
        assert plain(text, [entry], semantics) == ([0] if matches else [])
        assert Automaton.build([entry], semantics=semantics).match(pa.array([text])).to_pylist() == [[0] * matches]


@pytest.mark.parametrize(
    ("character", "released", "mended"),
    [("猫", 0, 0), ("ก", 0, 0), ("ກ", 0, 0), ("က", 0, 0), ("ក", 0, 0), ("ཀ", 0, 0), ("，", 0, 0), ("$", 0, 0),
     ("—", 0, 0), ("–", 1, 0), ("…", 1, 0), ("«", 1, 0), ("،", 1, 0), ("！", 0, 0), ("⼀", 0, 1),
     ("カ", 1, 0), ("ね", 1, 0), ("ｶ", 1, 0), ("a", 1, 1), ("고", 1, 1), ("é", 1, 1), (" ", 1, 1)],
)  # fmt: skip
def test_characters_that_need_a_space_beside_them(character: str, released: int, mended: int) -> None:
    assert (needs_space(character, "metaclip"), needs_space(character, "fixed")) == (bool(released), bool(mended))


def test_saved_automaton_keeps_ids_and_semantics(tmp_path: Path) -> None:
    Automaton.build(["カメラ", "猫"], ids=[12, 5], semantics="fixed").save(tmp_path / "ja")
    loaded = Automaton.load(tmp_path / "ja")
    texts = pa.chunked_array([["猫のカメラ猫", None], ["犬"]])
    assert loaded.match(texts).to_pylist() == [[5, 12], [], []]
    assert loaded.match(texts).type == pa.list_(pa.int32())


def test_duplicate_entries_and_empty_metadata_are_rejected() -> None:
    with pytest.raises(UserError, match="'猫' occurs twice, at 0 and at 2"):
        Automaton.build(["猫", "犬", "猫"])
    with pytest.raises(UserError, match="has no entries"):
        Automaton.build([])
