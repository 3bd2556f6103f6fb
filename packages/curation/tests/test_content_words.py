"""Entries of content words: no function words, inflected forms by WordNet's rules, names, and bigrams of these."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from vfm.data.pairs.stages import Pairs
from vfm.plugin import Event, UserError
from vfm_curation.metadata.content_words import ContentWords, WordNetForms
from vfm_curation.metadata.function_words import function_words, word_lists
from vfm_curation.metadata.stages import BuildMetadata, CaptionWords
from vfm_curation.metadata.vocabulary import Vocabulary

INDEX = {
    "noun": ["dog", "box", "church", "city", "woman", "child", "hydrant", "in", "grass", "a"],
    "verb": ["run", "hop", "smile", "try", "be", "wash", "hydrate"],
    "adj": ["large", "red", "sleeved", "two"],
    "adv": ["slowly"],
}
IRREGULAR = {"noun": ["children child"], "verb": ["ran run", "running run"], "adj": ["larger large"], "adv": []}


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """Return a folder of WordNet's files with a few words."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for kind, words in INDEX.items():
        lines = ["  1 This is the licence.", *(f"{word} n 1 0 1 0 00000001" for word in words)]
        (folder / f"index.{kind}").write_text("\n".join(lines) + "\n")
        (folder / f"{kind}.exc").write_text("".join(f"{line}\n" for line in IRREGULAR[kind]))
    return folder


@pytest.mark.parametrize(
    "word",
    [
        "dogs", "boxes", "churches", "cities", "women", "children", "ran", "running", "hops", "smiling", "smiled",
        "tries", "washes", "larger", "largest", "slowly", "Two", "dog's", "dogs'", "long-sleeved", "NASA", "Paris",
        "Coca-Cola", "red dogs", "Paris dog",
    ],
)  # fmt: skip
def test_content_words_with_wordnet(wordnet: Path, word: str) -> None:
    assert ContentWords("en", WordNetForms(wordnet))(word)


@pytest.mark.parametrize(
    "word",
    ["in", "In", "a", "is", "with", "qzx", "img_1234", "IMG_1234", "2012", "&amp", "in dogs", "dogs qzx", "it's"],
)
def test_other_words_with_wordnet(wordnet: Path, word: str) -> None:
    assert not ContentWords("en", WordNetForms(wordnet))(word)


@pytest.mark.parametrize(
    ("language", "content", "other"),
    [
        ("en", ["dogs", "qzx", "fire hydrant"], ["the", "The", "of", "in dogs", "2012", "--"]),
        ("en_GB", ["dogs"], ["the"]),
        ("de", ["Hund", "läuft"], ["der", "Der", "auf", "ein Hund", "und"]),
        ("fr", ["chien", "rouge"], ["le", "dans", "une"]),
        ("xx", ["the", "der"], ["12"]),
        ("", ["the", "der"], ["12"]),
    ],
)
def test_words_without_wordnet(language: str, content: list[str], other: list[str]) -> None:
    words = ContentWords(language)
    assert [word for word in content if not words(word)] == []
    assert [word for word in other if words(word)] == []


def test_every_list_has_the_commonest_words_in_lower_case() -> None:
    commonest = {"en": "the", "de": "und", "fr": "de", "es": "la", "it": "di", "pt": "que", "nl": "het", "cs": "na"}
    commonest["ar"] = "في"
    assert set(commonest) == set(word_lists())
    for language, word in commonest.items():
        assert word in function_words(language)
        assert all(one == one.lower() for one in function_words(language))


@given(st.lists(st.lists(st.sampled_from(["a", "the", "dog", "red", "Paris", "in", "x"]), max_size=6).map(" ".join)))
def test_entries_are_those_of_all_words_that_are_content_words(captions: list[str]) -> None:
    words, vocabulary = ContentWords("en"), Vocabulary(captions)
    options: Any = {"min_count": 1, "bigram_min_count": 1, "bigram_share": 0.3}
    every, content = vocabulary.entries(**options), vocabulary.entries(**options, only=words)
    assert list(content.items()) == [(entry, source) for entry, source in every.items() if words(entry)]
    some = vocabulary.entries(4, **options, only=words)
    assert set(some) <= set(content)
    assert len(some) == min(4, len(content))


def entries_of(run_stage: Any, make_pool: Any, name: str, **settings: Any) -> tuple[set[str], list[str]]:
    """Return the entries of a small pool, and what the stage logged."""
    captions = ["a dog near the fire hydrant in Paris", "the fire hydrant of a red dog"] * 5
    pool, lines = make_pool(name, [(f"u{i}", {"en": [text]}) for i, text in enumerate(captions)]), list[str]()

    def note(event: Event) -> None:
        lines.append(str(event.data.get("message")))

    stage = BuildMetadata(name=f"m{name}", captions="p", **settings)
    made = run_stage(stage, send=note, p=pool)
    return {row["entry"] for row in pq_rows(made.path / "entries.parquet")}, lines


def pq_rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def test_the_stage_takes_content_words_with_wordnet_and_without(run_stage: Any, make_pool: Any, wordnet: Path) -> None:
    content = {"words": "content", "bigram_min_pmi": 1}
    entries, lines = entries_of(run_stage, make_pool, "without", **content, wordnet=None)
    assert entries == {"dog", "fire", "hydrant", "Paris", "red", "fire hydrant", "red dog"}
    assert "content words in en: words that are no function words" in lines
    entries, lines = entries_of(run_stage, make_pool, "with", **content, wordnet=str(wordnet))
    assert entries == {"dog", "hydrant", "Paris", "red", "red dog"}
    assert f"content words in en: those that WordNet knows ({wordnet})" in lines
    assert "a" in entries_of(run_stage, make_pool, "all")[0]


def test_a_pair_of_words_needs_to_be_more_frequent_than_by_chance(run_stage: Any, make_pool: Any) -> None:
    assert entries_of(run_stage, make_pool, "p", words="content", wordnet=None)[0] == {
        "dog", "fire", "hydrant", "Paris", "red",
    }  # fmt: skip


def test_wordnets_files_are_inputs_of_the_stage(wordnet: Path) -> None:
    source = CaptionWords(pool="p", words="content", wordnet=str(wordnet))
    assert sorted(source.files()) == sorted(map(str, wordnet.iterdir()))
    assert not list(CaptionWords(pool="p", words="content", wordnet=None).files())
    assert not list(CaptionWords(pool="p").files())


def test_a_folder_without_wordnet_is_an_error_in_one_line(run_stage: Any, make_pool: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.noun: no such file; expected WordNet's folder"):
        entries_of(run_stage, make_pool, "p", words="content", wordnet=str(tmp_path))


def test_captions_of_function_words_are_an_error_in_one_line(run_stage: Any, make_pool: Any) -> None:
    pool = make_pool("p", [(f"u{number}", {"en": ["in the of"]}) for number in range(9)])
    with pytest.raises(UserError, match="no content word occurs 5 times in the captions of 'p'"):
        run_stage(BuildMetadata(name="m", captions="p", words="content"), p=pool)


def test_captions_in_another_language_than_their_key_are_an_error_with_the_way_out(
    run_stage: Any, make_pool: Any, wordnet: Path
) -> None:
    pool = make_pool("p", [(f"u{number}", {"en": ["собака у реки"]}) for number in range(9)])
    stage = BuildMetadata(name="m", captions="p", words="content", wordnet=str(wordnet))
    with pytest.raises(UserError, match="in a language other than English, name it in the pool's texts"):
        run_stage(stage, p=pool)


def test_captions_that_cannot_be_read_are_an_error_with_the_reason(run_stage: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_bytes(b"caption\n" + "un café\n".encode("latin-1") * 9)
    pool = run_stage(Pairs(name="p", path=str(file), images=False))
    with pytest.raises(UserError, match=r"'p' has no caption in 'en' \(skipped: 9 x "):
        run_stage(BuildMetadata(name="m", captions="p", words="content", wordnet=None), p=pool)
