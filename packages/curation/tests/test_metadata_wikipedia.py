"""Wikipedia's words, bigrams and titles: from dumps and hourly page views that the tests write."""

import bz2
import gzip
import itertools
import os
from pathlib import Path

import pytest

from shard_tasks import KilledError
from vfm.plugin import Context, Event, UserError
from vfm_curation.engine import map_in_order
from vfm_curation.metadata import Corpus, Vocabulary, wikimedia
from vfm_curation.metadata.counting import SpillingCounter
from vfm_curation.metadata.tokenizers import caption_words, characters, find_tokenizer, icu_words, prose_words
from vfm_curation.metadata.wikimedia import articles, views_of_hour
from vfm_curation.metadata.wikipedia import plain_text

PAGE = "<page><title>{title}</title><ns>{ns}</ns>{redirect}<revision><text>{text}</text></revision></page>\n"
DUMP = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo/>\n{pages}</mediawiki>'


def dump_of(path: Path, texts: list[str]) -> Path:
    """Write a dump with a redirect, a talk page and an empty page among the articles."""
    pages = [PAGE.format(title=f"a{i}", ns=0, redirect="", text=text) for i, text in enumerate(texts)]
    pages.insert(1, PAGE.format(title="r", ns=0, redirect='<redirect title="x"/>', text="#REDIRECT [[redirected]]"))
    pages.insert(1, PAGE.format(title="t", ns=1, redirect="", text="talked"))
    pages.append("<page><title>e</title><ns>0</ns><revision><text/></revision></page>")
    path.write_bytes(bz2.compress(DUMP.format(pages="".join(pages)).encode()))
    return path


def context(tmp_path: Path) -> Context:
    return Context("entries", tmp_path, tmp_path, {})


def counted(counter: SpillingCounter) -> dict[str, int]:
    return {row["key"]: row["count"] for table in counter.tables() for row in table.to_pylist()}


def test_only_articles_are_read_from_a_dump(tmp_path: Path) -> None:
    places: list[int] = []
    path = dump_of(tmp_path / "wiki.xml.bz2", ["one &amp; two", "three"])
    assert list(articles(path, places.append)) == ["one & two", "three", ""]
    assert len(places) == 5
    assert places[-1] == path.stat().st_size


def test_a_dump_of_several_bz2_streams_is_read_to_its_end(tmp_path: Path) -> None:
    whole = DUMP.format(pages="".join(PAGE.format(title="a", ns=0, redirect="", text=i) for i in range(9))).encode()
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(whole[:300]) + bz2.compress(whole[300:]))
    assert list(articles(tmp_path / "a.xml.bz2")) == [str(i) for i in range(9)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml.bz2", bz2.compress(b"<mediawiki><page></page>" * 9)[:-9], "end-of-stream"),
        ("a.xml.bz2", b"<mediawiki/>", "Invalid data stream"),
        ("a.xml.gz", b"<mediawiki/>", "[Nn]ot a gzipped file"),
        ("a.xml.gz", gzip.compress(b"<mediawiki></mediawiki>", mtime=0)[:12] + b"\xff\xff\xff", "a.xml.gz: "),
        ("a.xml", b"<mediawiki><page>", "not readable as XML: no element found"),
        ("a.xml", b"", "not readable as XML"),
        ("a.xml", b"<html></html>", "expected a dump with the root <mediawiki>, got <html>"),
        ("a.xml", b"<mediawiki><page><text>a</text></page></mediawiki>", "a page has no <ns>"),
    ],
)
def test_broken_dumps_are_errors_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(articles(tmp_path / name))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_wikitext_is_stripped_to_what_a_reader_sees() -> None:
    wikitext = """{{Infobox|name=gone}}'''Bold''' [[target|label]] [[plain]]<ref>gone</ref>
[[File:gone.jpg|thumb|gone [[gone]]]] [[Datei:gone.png|gone]] [[Category:gone]] [[fr:gone]] [[Star Trek: Picard]]
== Heading ==
<!-- gone -->[http://gone.org site] ''it's''"""
    words = plain_text(wikitext).split()
    assert words == ["Bold", "label", "plain", "Star", "Trek:", "Picard", "Heading", "site", "it's"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dump_and_its_plain_text_give_the_same_counts(tmp_path: Path, workers: int) -> None:
    texts = ["The ''red fox'' (a [[fox]]) saw", "the red fox\nred fox; fox red"] * 150
    dump = dump_of(tmp_path / "wiki.xml.bz2", texts)
    plain = tmp_path / "wiki.txt.gz"
    lines = ["<doc id=1>", *map(plain_text, texts), "</doc>"]
    plain.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = []
    for file, wikitext in ((dump, True), (plain, False)):
        vocabulary, ctx = Vocabulary(folder=tmp_path / "counts", max_counted=3), context(tmp_path)
        Corpus((file,), wikitext, "en").count(vocabulary, ctx, workers)
        assert not ctx.bad
        found.append((vocabulary.num_words, counted(vocabulary.words), counted(vocabulary.pairs)))
    assert found[0] == found[1]
    assert found[0][1] == {"The": 150, "the": 150, "red": 600, "fox": 750, "a": 150, "saw": 150}
    assert found[0][2] == {"The red": 150, "red fox": 450, "a fox": 150, "the red": 150, "fox red": 150}


def test_lines_with_invalid_utf8_are_counted_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"red fox\n\xff\xfe\nred\n")
    vocabulary, ctx = Vocabulary(), context(tmp_path)
    Corpus((tmp_path / "a.txt",), wikitext=False).count(vocabulary, ctx)
    assert counted(vocabulary.words) == {"red": 2, "fox": 1}
    assert ctx.bad == {"invalid_utf8": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_count_resumes_after_what_is_on_disk_with_the_same_counts(tmp_path: Path, workers: int) -> None:
    files = (tmp_path / "a.txt", tmp_path / "b.txt")
    files[0].write_bytes(b"red fox\n\xff\n" * 150)
    files[1].write_bytes(b"".join(f"red fox {i}\n".encode() for i in range(900)))
    corpus = Corpus(files, wikitext=False)

    def count(folder: str, die_at: int | None = None) -> tuple[object, ...]:
        events: list[Event] = []

        def send(event: Event) -> None:
            events.append(event)
            if die_at and event.type == "progress" and event.data["shown"]["pages"] >= die_at:
                raise KilledError

        ctx = Context("entries", tmp_path, tmp_path, {}, send)
        vocabulary = Vocabulary(folder=tmp_path / folder / corpus.source_hash, max_counted=250, resume=True)
        corpus.count(vocabulary, ctx, workers)
        first.append(next(event.data["shown"]["pages"] for event in events if event.type == "progress"))
        return vocabulary.num_words, counted(vocabulary.words), counted(vocabulary.pairs), ctx.bad

    first: list[int] = []
    whole = count("whole")
    with pytest.raises(KilledError):
        count("killed", die_at=900)
    assert count("killed") == whole
    assert first == [200, 900]  # the first 700 were on disk and not counted again
    assert whole[3] == {"invalid_utf8": 150}


def test_counts_of_other_files_are_not_resumed(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"red fox\n")
    before = Corpus((file,), wikitext=False).source_hash
    assert Corpus((file,), wikitext=False, language="de").source_hash != before
    file.write_bytes(b"red fox, again\n")
    assert Corpus((file,), wikitext=False).source_hash != before


def test_items_come_back_in_order_from_any_number_of_processes() -> None:
    assert list(map_in_order(abs, range(-9, 0), 2)) == list(map_in_order(abs, range(-9, 0), 0)) == list(range(9, 0, -1))


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^a worker was killed; .*memory"):
        list(map_in_order(os._exit, [9], 2))


def test_hourly_views_are_summed_by_title(tmp_path: Path) -> None:
    lines = [
        b"de New_York 900 0",
        b"en New_York 60 0",
        b"en.m New_York 7 0",
        b"en Special:Search 800 0",
        b"en.m.v x 5 0",
        b"en \xff 5 0",
        b"en too few",
        b"en bad many 0",
    ]
    path = tmp_path / "pageviews-20180419-000000.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    bad: list[tuple[str, str]] = []
    assert views_of_hour(path, "en", on_bad=lambda *one: bad.append(one)) == {"New York": 60}
    assert bad == [("invalid_utf8", f"{path}:6"), ("broken_line", f"{path}:7"), ("broken_line", f"{path}:8")]
    assert views_of_hour(path, "en", mobile=True) == {"New York": 67}


def test_line_that_never_ends_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wikimedia, "MAX_LINE", 1 << 20)
    path = tmp_path / "pageviews-20180419-000000.gz"
    path.write_bytes(gzip.compress(b"en Fox 3 0\n" + b"x" * (1 << 20)))
    assert views_of_hour(path, "en") == {"Fox": 3}
    path.write_bytes(gzip.compress(b"en Fox 3 0\n" + b"x" * (3 << 20)))
    for read in (lambda: views_of_hour(path, "en"), lambda: list(wikimedia.lines(path))):
        with pytest.raises(UserError, match=r"pageviews-20180419-000000\.gz: line 2 is longer than 1 MiB"):
            read()


def runs(words: list[str]) -> list[list[str]]:
    """Words between breaks."""
    return [list(run) for is_word, run in itertools.groupby(words, bool) if is_word]


def test_prose_is_split_at_spaces_without_marks() -> None:
    text = 'The "red-brown fox" (Vulpes v.) isn\'t\u00a0tame\nNext • 5 % 🙂'
    assert runs(prose_words(text)) == [
        ["The"],
        ["red-brown", "fox"],
        ["Vulpes", "v"],
        ["isn't", "tame"],
        ["Next"],
        ["5"],
    ]
    assert runs(caption_words("(red fox), fox  - red")) == [["(red", "fox)"], ["fox"], ["red"]]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("zh", "猫，狗狗 dogs", [["猫"], ["狗", "狗"], ["dogs"]]),
        ("ja", "ねこがiPhone", [["ね", "こ", "が", "iPhone"]]),
        ("th", "ที่นี่", [["ที่", "นี่"]]),  # vowels and tones belong to their consonants
    ],
)
def test_characters_are_words_in_scripts_without_spaces(language: str, text: str, expected: list[list[str]]) -> None:
    tokenizer = find_tokenizer("auto", language, prose=True)
    assert runs(tokenizer(text)) == expected
    assert tokenizer.joiner == ""
    assert tokenizer.split is characters


def test_icu_finds_words_in_scripts_without_spaces() -> None:
    pytest.importorskip("icu4py")
    assert runs(icu_words("新しいカメラで撮った猫の写真、ねこが好き", "ja"))[0][:4] == ["新しい", "カメラ", "で", "撮"]
    assert runs(icu_words("我们在北京大学。 猫", "zh")) == [["我们", "在", "北京", "大学"], ["猫"]]
    vocabulary = Vocabulary(["北京大学", "北京大学"], tokenizer=find_tokenizer("icu", "zh", prose=True))
    assert vocabulary.top_pairs() == ["北京大学"]
