"""Metadata: frozen order, counts and PMI by definition, files of every format, WordNet's number of entries."""

import hashlib
import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from vfm.plugin import UserError
from vfm_curation.matching import Matcher
from vfm_curation.metadata import (
    EntryList,
    Vocabulary,
    entries_sha256,
    ids_for,
    lint,
    read_entries,
    read_lists,
    wordnet_entries,
)
from vfm_curation.metadata.counting import SpillingCounter

WORDNET = Path("/usr/share/wordnet")  # the folder of Debian's wordnet-base

CAPTIONS = ["a red fox, asleep", "a red fox jumps", "the red car - fast!", "A red fox (again)", "a  red car"]


def counted(counter: SpillingCounter) -> dict[str, int]:
    return {row["key"]: row["count"] for table in counter.tables() for row in table.to_pylist()}


def test_words_and_pairs_are_counted_like_the_matcher_finds_them() -> None:
    vocabulary = Vocabulary(CAPTIONS)
    words, pairs = counted(vocabulary.words), counted(vocabulary.pairs)
    assert words == {
        "a": 3,
        "red": 5,
        "fox": 3,
        "asleep": 1,
        "jumps": 1,
        "the": 1,
        "car": 2,
        "fast": 1,
        "A": 1,
        "(again)": 1,
    }
    assert "fox asleep" not in pairs  # the comma is between them
    assert pairs["a red"] == 2  # not across the double space
    matcher = Matcher(list(pairs))
    for index, (pair, count) in enumerate(pairs.items()):
        assert sum(index in matcher.match(caption) for caption in CAPTIONS) == count, pair


def test_pmi_by_hand() -> None:
    captions = ["new york", "new york", "new car", "a car"]
    vocabulary = Vocabulary(captions)
    pmi = math.log2((2 / 8) / ((3 / 8) * (2 / 8)))
    assert vocabulary.top_pairs(min_count=2) == ["new york"]
    assert vocabulary.top_pairs(min_pmi=pmi - 1e-6) == ["a car", "new york"]
    assert vocabulary.top_pairs(min_pmi=pmi + 1e-6) == ["a car"]


def test_score_by_hand() -> None:
    """Rank the pairs a b (three times), c d, e f, a d: rare pairs have a high PMI, frequent ones a high score."""
    vocabulary = Vocabulary(["a b"] * 3 + ["c d", "e f", "a d"])
    count = {"a b": (3, 4, 3), "c d": (1, 1, 2), "e f": (1, 1, 1), "a d": (1, 4, 2)}
    pmi = {pair: math.log2(both * 12 / (first * second)) for pair, (both, first, second) in count.items()}
    base = sorted(pmi.values())[1]  # 30 % of four
    score = {pair: (count[pair][0] + 1) ** 0.7 * (pmi[pair] - base) for pair in pmi}
    assert vocabulary.top_pairs() == ["e f", "c d", "a b", "a d"]
    ranked = sorted((pair for pair in score if score[pair] > 1e-3), key=lambda pair: -score[pair])
    assert [pair for pair in vocabulary.top_pairs(rank="score") if score[pair] > 1e-3] == ranked
    assert vocabulary.top_pairs(rank="score", limit=1) == ranked[:1]


words = st.text("ab", min_size=1, max_size=3)


@settings(max_examples=40)
@given(st.lists(st.lists(words, max_size=6).map(" ".join), max_size=12))
def test_counts_spilled_to_disk_equal_those_in_memory(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spilled = Vocabulary(texts, folder=Path(folder), max_counted=2)
        plain = Vocabulary(texts)
        assert counted(spilled.words) == Counter(itertools.chain.from_iterable(map(str.split, texts)))
        assert counted(spilled.pairs) == counted(plain.pairs)
        assert spilled.top_pairs() == plain.top_pairs()
        assert spilled.top_pairs(rank="score", limit=3) == plain.top_pairs(rank="score", limit=3)
        assert spilled.entries(5, min_count=1, bigram_min_count=1, bigram_share=0.3) == plain.entries(
            5, min_count=1, bigram_min_count=1, bigram_share=0.3
        )


def test_top_strings_by_count_share_and_limit() -> None:
    counter = SpillingCounter()
    counter.add({"a": 1, "c": 5, "b": 5, "d": 3})
    assert counter.top() == ["b", "c", "d", "a"]
    assert counter.top(3) == ["b", "c", "d"]
    assert counter.top(share=0.5) == counter.top(limit=2) == ["b", "c"]
    assert counter.top(limit=0) == []


def test_order_is_by_count_then_text_for_any_order_of_captions() -> None:
    shuffled = CAPTIONS.copy()
    random.Random(0).shuffle(shuffled)
    orders = [
        list(Vocabulary(texts).entries(8, min_count=1, bigram_min_count=1, bigram_share=0.3))
        for texts in (CAPTIONS, shuffled)
    ]
    assert orders[0] == orders[1]
    assert orders[0][:4] == ["red", "a", "fox", "car"]


def test_entries_do_not_change_with_the_hash_seed_of_python() -> None:
    code = (
        "from vfm_curation.metadata import Vocabulary, entries_sha256\n"
        f"entries = Vocabulary({CAPTIONS!r}).entries(9, min_count=1, bigram_min_count=1, bigram_share=0.3)\n"
        "print(entries_sha256(('en', *pair) for pair in entries.items()))"
    )
    command = [sys.executable, "-c", code]
    hashes = {subprocess.check_output(command, env={"PYTHONHASHSEED": seed}) for seed in ("1", "2")}
    assert len(hashes) == 1


def test_size_is_reached_and_one_kind_fills_up_for_the_other() -> None:
    vocabulary = Vocabulary(CAPTIONS)
    sources = vocabulary.entries(6, min_count=1, bigram_min_count=1, bigram_share=0.5)
    assert list(sources.values()).count("bigram") == 3
    assert len(sources) == 6
    assert len(vocabulary.entries(6, min_count=1, bigram_min_count=99, bigram_share=0.3)) == 6
    only_pairs = vocabulary.entries(3, min_count=99, bigram_min_count=1, bigram_share=0.3)
    assert set(only_pairs.values()) == {"bigram"}
    assert len(only_pairs) == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "red fox\n\ncat\n!\nred fox\r\n()\n"),
        ("a.json", json.dumps(["red fox", "cat", "", "!", "()"])),
        ("a.csv", "red fox,3\ncat,2\n!,1\n(),1\n"),
        ("a.tsv", "red fox\t3\ncat\t2\n()\n"),
    ],
)
def test_files_of_every_format_keep_their_order(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    entries = EntryList()
    entries.add(read_entries(tmp_path / name))
    assert list(entries) == [("", entry, name) for entry in ("red fox", "cat", "()")]


def test_a_column_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('count,entry\n3,"red, fox"\n', encoding="utf-8")
    assert list(read_entries(path, column="entry")) == ["red, fox"]
    with pytest.raises(UserError, match="no column 'word'; choose from count, entry"):
        read_entries(path, column="word")


def test_a_byte_order_mark_is_not_part_of_the_first_entry(tmp_path: Path) -> None:
    for name, text in (("a.txt", "cat\ndog\n"), ("a.json", '["cat", "dog"]'), ("a.csv", "cat,1\ndog,2\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert list(read_entries(tmp_path / name)) == ["cat", "dog"]


def test_half_a_character_is_left_out_and_reported(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["cat", "\\ud83d smile"]', encoding="utf-8")
    entries = EntryList()
    entries.add(read_entries(tmp_path / "a.json"))
    assert [entry for _, entry, _ in entries] == ["cat"]
    assert [(one.entry, one.kind, one.reason) for one in lint(entries)] == [("? smile", "left out", "half a character")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"cat": 1}', "a JSON list of strings"),
        ("a.json", b"[1]", "a JSON list of strings"),
        ("a.json", b"[", "not readable as json"),
        ("a.json", b"[" * 100_000, "not readable as json"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "not readable as json"),
        ("a.txt", b"\xff\xfe", "not readable as txt in UTF-8"),
        ("a.pkl", b"", "expected a .txt, .json, .csv or .tsv file"),
        ("gone.txt", None, "no such file"),
        ("folder", None, "data.noun: no such file"),
    ],
)
def test_bad_files_are_errors_in_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_entries(tmp_path / name)
    assert "\n" not in str(error.value)


def test_wordnet_names_are_cut_at_the_dot_and_have_no_markers(tmp_path: Path) -> None:
    lines = {
        "data.noun": "00001 03 n 02 St._Petersburg 0 city 0 000 | x\n00002 03 n 01 .22_caliber 0 000 | y\n",
        "data.verb": "00003 29 v 01 breathe 0 000 | z\n",
        "data.adj": "  1 a licence\n00004 00 a 01 galore(ip) 0 000 | w\n",
        "data.adv": "00005 02 r 01 a_cappella 0 000 | v\n",
    }
    for name, text in lines.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    sources = wordnet_entries(tmp_path)
    assert list(sources)[:100] == [str(number) for number in range(100)]
    assert list(sources)[100:] == ["st", "breathe", "galore", "a cappella"]
    assert set(list(sources.values())[100:]) == {"wordnet"}


@pytest.mark.skipif(not (WORDNET / "data.noun").exists(), reason="Debian's wordnet-base is not installed")
def test_wordnet_gives_the_papers_86654_entries() -> None:
    assert len(read_entries(WORDNET)) == 86_654


def test_an_open_wordnet_of_another_language_gives_its_words(tmp_path: Path) -> None:
    text = "# Wolf\tfra\turl\tfree\n1-n\tfra:lemma\tdans l'eau\n1-n\tfra:def\tnon\n2-n\tlemma\tBout_de_pain\n"
    (tmp_path / "wn.tab").write_text(text, encoding="utf-8")
    assert list(wordnet_entries(tmp_path / "wn.tab", numbers=False)) == ["dans l'eau", "Bout de pain"]
    (tmp_path / "wn.tab").write_text("lemma\n", encoding="utf-8")
    with pytest.raises(UserError, match="not a file of WordNet"):
        wordnet_entries(tmp_path / "wn.tab")


def test_lists_by_language_and_with_sources(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"0": "", "cat": "w", "New York": "b", "x": "mine"}), encoding="utf-8")
    sources = {"0": "number", "cat": "wordnet", "New York": "wikipedia bigram", "x": "mine"}
    assert read_lists(path, language="en") == {"en": sources}
    path.write_text(json.dumps({"en": ["cat"], "de": {"Katze": "t"}}), encoding="utf-8")
    assert read_lists(path) == {"en": {"cat": "a.json"}, "de": {"Katze": "wikipedia title"}}
    with pytest.raises(UserError, match="has a list for each of en, de"):
        read_entries(path)
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "fr.json").write_text('["chat"]', encoding="utf-8")
    (folder / "cs.json").write_text('["kočka"]', encoding="utf-8")
    assert read_lists(folder) == {"cs": {"kočka": "cs.json"}, "fr": {"chat": "fr.json"}}


def test_merged_in_order_the_first_source_wins_up_to_the_size() -> None:
    entries = EntryList(size=3)
    entries.add({"cat": "one", "!": "one", "x" * 257: "one", "dog": "one"})
    entries.add({"dog": "two", "owl": "two", "fox": "two"})
    entries.add({"cat": "two", "Hund": "two", "，": "two"}, "de")
    assert list(entries) == [("", "cat", "one"), ("", "dog", "one"), ("", "owl", "two"), ("de", "Hund", "two")]
    assert entries.languages == ["", "de"]
    assert entries.num_beyond == 1
    assert [(row[1], reason) for row, reason in entries.left_out] == [
        ("!", "lone punctuation"),
        ("x" * 257, "longer than 256 characters"),
        ("dog", "also in an earlier source: one"),
        ("cat", "also in an earlier source: one"),
        ("，", "lone punctuation"),
    ]


def test_ids_for_a_language_include_the_shared_entries() -> None:
    languages = ["", "en", "de", "", "en"]
    assert ids_for(pa.table({"language": languages}), "en").tolist() == [0, 1, 3, 4]
    assert ids_for(pa.table({"language": languages}), "fr").tolist() == [0, 3]


def test_lint_finds_dead_left_out_and_odd_entries() -> None:
    entries = EntryList()
    entries.add({"chat": "a", "chat ": "a", "!": "a"}, "fr")
    entries.add({"chat": "b", "U.S.": "b", "--": "b"})
    assert [(one.language, one.entry, one.source, one.kind) for one in lint(entries)] == [
        ("", "U.S.", "b", "dead"),
        ("fr", "!", "a", "left out"),
        ("fr", "chat", "a", "odd"),  # also an entry for any language
        ("fr", "chat ", "a", "odd"),
        ("", "--", "b", "odd"),
    ]


def test_the_hash_depends_on_order_and_languages() -> None:
    rows = [("en", "a", "x"), ("en", "b", "x")]
    others = [rows[::-1], [("en", "a", "x"), ("de", "b", "x")], rows[:1]]
    assert entries_sha256(rows) not in map(entries_sha256, others)
    assert entries_sha256(rows) == hashlib.sha256(b'["en", "a"]\n["en", "b"]\n').hexdigest()
