"""The compiled matcher: equal to the definition on hostile text, at block boundaries, and in several processes."""

import gzip
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings, strategies as st

from vfm.plugin import UserError
from vfm_curation.match.matchers import separate_fixed_marks
from vfm_curation.match.text_ids import MAX_RANKED
from vfm_curation.match.token_hash import BLOCK_BYTES, P, R, U
from vfm_curation.match.token_table import TokenTable, tables_of
from vfm_curation.matching import (
    FIXED_BLANKS,
    FIXED_MARKS,
    MARKS,
    Matcher,
    match_plain,
    tokenize,
)
from vfm_curation.metadata import Vocabulary
from vfm_curation.text_counts import text_buffers

CAPTIONS = Path(__file__).parents[4] / "shared" / "data" / "captions_en.tsv.gz"

# Double spaces, no-break and ideographic spaces, tabs, line ends, marks, full-width marks, emoji, CJK, accents, NUL.
BLANKS = [" ", " ", " ", "\u00a0", "\u3000", "\t", "\n", "\r"]
ALPHABET = ["a", "b", "A", *BLANKS, *MARKS, "，", "(", "'", "猫", "😀", "\u0301", "\0", "abcdefgh"]
hostile = st.lists(st.sampled_from(ALPHABET), max_size=14).map("".join)
hostile_entries = st.lists(
    st.lists(st.sampled_from(ALPHABET), max_size=5).map("".join), min_size=1, max_size=12, unique=True
)


def found(table: TokenTable, texts: list[str], **how: bool) -> list[list[int]]:
    return table.match(pa.array(texts, pa.string()), **how).to_pylist()


@settings(max_examples=400)
@given(st.lists(hostile, max_size=6), hostile_entries)
@example(["a  b"], ["a b", "a", "", "a  b"])
@example([""], ["", " "])
@example(["a, b", "b"], ["a ,", ", b", ",", ",  b", ""])
def test_table_equals_the_substring_definition(texts: list[str], entries: list[str]) -> None:
    table, plain = TokenTable.build(entries), [match_plain(text, entries) for text in texts]
    assert found(table, texts) == plain
    assert found(table, texts, verify=True) == plain


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.sampled_from([*ALPHABET, *FIXED_MARKS, *FIXED_BLANKS]), max_size=14).map("".join), max_size=4),
    hostile_entries,
)
def test_fixed_semantics_equal_the_definition(texts: list[str], entries: list[str]) -> None:
    plain = [match_plain(text, entries, "fixed") for text in texts]
    assert TokenTable.build(entries).match(separate_fixed_marks(pa.array(texts, pa.string()))).to_pylist() == plain
    assert [Matcher(entries, "fixed").match(text) for text in texts] == plain


def test_all_runs_of_all_small_texts_are_found() -> None:
    """Random entries seldom match; here all token runs of all texts over a small alphabet are entries."""
    texts = ["".join(letters) for letters in itertools.product("ab ,", repeat=4)]
    tokens = [tokenize(text) for text in texts]
    entries = sorted({" ".join(t[i:j]) for t in tokens for i in range(len(t)) for j in range(i + 1, len(t) + 1)})
    table, plain = TokenTable.build(entries), [match_plain(text, entries) for text in texts]
    assert found(table, texts) == found(table, texts, verify=True) == plain
    assert max(map(len, plain)) > 8


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129])
def test_tokens_of_every_length_at_every_place(length: int) -> None:
    """Cover all alignments of tokens with hash words, 64-byte steps and the end of the text."""
    word = "xyz" * 50
    entries = list(dict.fromkeys([word[:length], word[:length] + "!", word[:length] + "q", "q" + word[:length]]))
    texts = [" " * shift + word[:length] + end for shift in range(70) for end in ("", " a", "q", ".")]
    plain = [match_plain(text, entries) for text in texts]
    assert found(TokenTable.build(entries), texts) == plain


def test_texts_at_block_boundaries_and_a_text_longer_than_a_block() -> None:
    long = "a b " * BLOCK_BYTES + "c"
    texts = ["a b"] * 1000 + [long, "", "b c", "x" * BLOCK_BYTES, "c", "a" + " c" * 10_000] + ["b", ""] * 700
    entries = ["a b", "c", "b", "b c", "a b a b a b", "x" * BLOCK_BYTES]
    matcher = Matcher(entries)
    assert found(TokenTable.build(entries), texts, verify=True) == [matcher.match(text) for text in texts]


def test_a_text_with_more_ids_than_are_ranked() -> None:
    entries = [f"e{number}" for number in range(5 * MAX_RANKED)]
    backwards = " ".join(reversed(entries))
    few = " ".join(entries[MAX_RANKED:0:-1])
    table = TokenTable.build(entries)
    assert found(table, [f"{backwards} {backwards}", few, f"{few} {few}"]) == [
        list(range(len(entries))),
        *[list(range(1, MAX_RANKED + 1))] * 2,
    ]


def test_an_entry_of_ten_thousand_characters_and_one_of_a_thousand_words() -> None:
    entries = ["w" * 10_000, "a " * 999 + "a", "a"]
    texts = ["w" * 10_000, "w" * 9_999, "a " * 999 + "a", "a " * 998 + "a"]
    assert found(TokenTable.build(entries), texts, verify=True) == [[0], [], [1, 2], [2]]


def colliding(tail: bytes) -> bytes:
    """Return 14 bytes and a tail whose token key is 0 for any tail: a factor of the folded product is 0."""
    with np.errstate(over="ignore"):
        return (P ^ (U(14) * R)).tobytes() + tail


def strings(*values: bytes) -> pa.Array:
    return pa.array(values, pa.binary()).view(pa.string())


def test_verification_drops_false_matches_and_keeps_the_rest() -> None:
    tables, clash = tables_of(*text_buffers(strings(colliding(b"entry_"), b"dog")), np.arange(2, dtype=np.int32))
    assert clash is None
    texts = strings(colliding(b"a_text") + b" dog", colliding(b"entry_") + b" dog")
    assert TokenTable(tables).match(texts).to_pylist() == [[0, 1], [0, 1]]
    assert TokenTable(tables).match(texts, verify=True).to_pylist() == [[1], [0, 1]]


def test_entries_whose_beginnings_share_a_key_are_rejected() -> None:
    first, second = colliding(b"entry1"), colliding(b"entry2")
    for entries in ([b"dog", first, second], [b"dog", first + b" cat", second], [b"dog", first, second + b" cat"]):
        _, clash = tables_of(*text_buffers(strings(*entries)), np.arange(3, dtype=np.int32))
        assert clash == (1, 2)


def test_duplicate_entries_and_empty_metadata_are_rejected() -> None:
    with pytest.raises(UserError, match="'cat' occurs twice, at 0 and at 2"):
        TokenTable.build(["cat", "dog", "cat"])
    with pytest.raises(UserError, match="has no entries"):
        TokenTable.build([])


def test_slices_chunks_missing_texts_dictionaries_and_large_strings() -> None:
    table = TokenTable.build(["dog", "cat"], ids=[7, 3])
    texts = pa.array(["dog", None, "cat dog", "", "cat"])
    expected = [[7], [], [3, 7], [], [3]]
    assert table.match(texts).to_pylist() == expected
    for kind in (
        pa.large_string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ):
        assert table.match(texts.cast(kind)).to_pylist() == expected
        assert table.match(texts.cast(kind)[1:4]).to_pylist() == expected[1:4]
        assert table.match(texts.cast(kind)[:0]).to_pylist() == []
    assert table.match(texts[1:4]).to_pylist() == expected[1:4]
    assert table.match(pa.chunked_array([texts[2:], texts[:2]])).to_pylist() == expected[2:] + expected[:2]
    assert table.match(pa.array([], pa.string())).to_pylist() == []
    assert table.match(texts).type == pa.list_(pa.int32())


def test_saved_tables_are_mapped_and_match_alike(tmp_path: Path) -> None:
    built = TokenTable.build([f"entry {number}" for number in range(2000)])
    built.save(tmp_path / "tables")
    loaded = TokenTable.load(tmp_path / "tables")
    texts = pa.array(["an entry 77, entry 1999", "none"])
    assert loaded.match(texts, verify=True) == built.match(texts) == pa.array([[77, 1999], []], pa.list_(pa.int32()))
    assert all(isinstance(table.base, np.memmap) for table in loaded.tables)


def test_half_a_million_entries_take_little_memory() -> None:
    entries = [f"{'abcdefgh'[number % 8]}{number // 5} w{number % 5000}" for number in range(500_000)]
    table = TokenTable.build(entries)
    assert table.nbytes < 100e6
    assert found(table, [entries[123_456], entries[499_999]]) == [[123_456], [499_999]]


@pytest.mark.skipif(not CAPTIONS.exists(), reason="needs the real captions")
def test_table_equals_trie_and_definition_on_real_captions() -> None:
    with gzip.open(CAPTIONS, "rt", encoding="utf-8") as lines:
        captions = [line.rstrip("\n").split("\t", 1)[1] for line in itertools.islice(lines, 0, 212_000, 21)]
    entries = list(Vocabulary(captions).entries(4000, min_count=1, bigram_min_count=1, bigram_share=0.3))
    matcher, ids = Matcher(entries), found(TokenTable.build(entries), captions)
    assert ids == [matcher.match(caption) for caption in captions]
    assert ids[:500] == [match_plain(caption, entries) for caption in captions[:500]]
    assert sum(map(len, ids)) > 50_000


def test_leftmost_and_longest_automata_would_lose_nested_and_overlapping_entries() -> None:
    ahocorasick = pytest.importorskip("ahocorasick")
    entries, text = ["new york city", "new york", "york city", "new", "city hall"], "new york city hall"
    automaton = ahocorasick.Automaton()
    for index, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", index)
    automaton.make_automaton()
    assert found(TokenTable.build(entries), [text]) == [[0, 1, 2, 3, 4]] == [match_plain(text, entries)]
    assert sorted({index for _, index in automaton.iter(f" {text} ")}) == [0, 1, 2, 3, 4]
    assert sorted({index for _, index in automaton.iter_long(f" {text} ")}) == [0]  # what leftmost kinds give too


def run_compiled(folder: Path, **environment: str) -> int:
    """Run a compiled function whose source is in `folder`; return 1 if its machine code was cached, else 0."""
    source = (
        "from vfm_curation.simd import compiled\n@compiled\ndef twice(x):\n    return 2 * x\nassert twice(4) == 8\n"
        "print(sum(twice.stats.cache_hits.values()))"
    )
    if not (folder / "made.py").exists():
        (folder / "made.py").write_text(source, encoding="utf-8")
    command, inherited = [sys.executable, str(folder / "made.py")], {**os.environ, **environment}
    done = subprocess.run(command, env=inherited, check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_compiled_code_is_kept_also_where_the_package_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").write_text("no folder")
    assert [run_compiled(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")) for _ in range(2)] == [0, 1]


def test_without_any_place_for_compiled_code_each_process_compiles(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").write_text("no folder")
    assert run_compiled(tmp_path, XDG_CACHE_HOME="/dev/null", HOME="/dev/null") == 0
