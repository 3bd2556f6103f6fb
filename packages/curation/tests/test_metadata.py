"""Metadata: frozen order, counts and PMI by the book, files of every kind, WordNet's golden number."""

import hashlib
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from vfm.config import UserError
from vfm_curation.matching import Matcher
from vfm_curation.metadata import EntryList, Vocabulary, entries_sha256, read_entries, wordnet_entries

WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it

CAPTIONS = ["a red fox, asleep", "a red fox jumps", "the red car - fast!", "A red fox (again)", "a  red car"]


def test_words_and_pairs_are_counted_as_the_matcher_finds_them() -> None:
    vocabulary = Vocabulary(CAPTIONS)
    assert vocabulary.unigrams["red"] == 5
    assert vocabulary.unigrams["a"] == 3
    assert vocabulary.unigrams["A"] == 1
    assert not {",", "", "-", "!"} & set(vocabulary.unigrams)
    assert vocabulary.bigrams["red", "fox"] == 3
    assert vocabulary.bigrams["fox", "asleep"] == 0  # the comma stands between
    assert vocabulary.bigrams["a", "red"] == 2  # not across the double space
    pairs = [" ".join(pair) for pair in vocabulary.bigrams]
    matcher = Matcher(pairs)
    for index, pair in enumerate(vocabulary.bigrams):
        assert sum(index in matcher.match(caption) for caption in CAPTIONS) == vocabulary.bigrams[pair]


def test_pmi_by_hand() -> None:
    vocabulary = Vocabulary(["new york", "new york", "new car", "a car"])
    assert vocabulary.pmi("new", "york") == pytest.approx(math.log2((2 / 8) / ((3 / 8) * (2 / 8))))
    assert vocabulary.top_bigrams(min_count=2) == ["new york"]


def test_order_is_by_count_then_text_whatever_the_order_of_captions() -> None:
    shuffled = CAPTIONS.copy()
    random.Random(0).shuffle(shuffled)
    orders = [list(Vocabulary(texts).entries(8, min_count=1, bigram_min_count=1)) for texts in (CAPTIONS, shuffled)]
    assert orders[0] == orders[1]
    assert orders[0][:4] == ["red", "a", "fox", "car"]


def test_entries_do_not_change_with_the_hash_seed_of_python() -> None:
    code = (
        "from vfm_curation.metadata import Vocabulary, entries_sha256\n"
        f"entries = Vocabulary({CAPTIONS!r}).entries(9, min_count=1, bigram_min_count=1)\n"
        "print(entries_sha256(('en', *pair) for pair in entries.items()))"
    )
    command = [sys.executable, "-c", code]
    hashes = {subprocess.check_output(command, env={"PYTHONHASHSEED": seed}) for seed in ("1", "2")}
    assert len(hashes) == 1


def test_size_is_kept_and_one_kind_fills_up_for_the_other() -> None:
    vocabulary = Vocabulary(CAPTIONS)
    sources = vocabulary.entries(6, min_count=1, bigram_min_count=1, bigram_share=0.5)
    assert list(sources.values()).count("bigram") == 3
    assert len(sources) == 6
    assert len(vocabulary.entries(6, min_count=1, bigram_min_count=99)) == 6
    only_pairs = vocabulary.entries(3, min_count=99, bigram_min_count=1)
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
def test_files_of_every_kind_keep_their_order(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    entries = EntryList()
    entries.add(read_entries(tmp_path / name))
    assert list(entries) == [("", entry, name) for entry in ("red fox", "cat", "()")]


def test_a_column_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('count,entry\n3,"red, fox"\n', encoding="utf-8")
    assert list(read_entries(path, column="entry")) == ["red, fox"]
    with pytest.raises(UserError, match="no column 'word'; its columns: count, entry"):
        read_entries(path, column="word")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b'{"cat": 1}', "a JSON list of strings"),
        ("a.json", b"[1]", "a JSON list of strings"),
        ("a.json", b"[", "not readable as json"),
        ("a.txt", b"\xff\xfe", "not readable as txt in UTF-8"),
        ("a.pkl", b"", "metadata is read from"),
        ("gone.txt", None, "no such file"),
        ("folder", None, "data.noun: no such file"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path: Path, name: str, content: bytes | None, complaint: str) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        read_entries(tmp_path / name)
    assert "\n" not in str(error.value)


def test_wordnet_names_are_cut_at_the_dot_and_freed_of_marks(tmp_path: Path) -> None:
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


def test_the_hash_names_order_and_languages() -> None:
    rows = [("en", "a", "x"), ("en", "b", "x")]
    others = [rows[::-1], [("en", "a", "x"), ("de", "b", "x")], rows[:1]]
    assert entries_sha256(rows) not in map(entries_sha256, others)
    assert entries_sha256(rows) == hashlib.sha256(b'["en", "a"]\n["en", "b"]\n').hexdigest()
