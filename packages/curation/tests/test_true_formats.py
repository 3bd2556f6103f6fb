"""Crawl files, a Wikipedia dump and page views in their true formats, through the stages that read them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from true_formats import (
    HEDGEHOG,
    LINKS,
    PAGE_VIEWS,
    WIKI_TEXTS,
    common_crawl_warc,
    common_crawl_wat,
    members,
    wikipedia_dump,
)
from vfm.plugin import Event
from vfm_curation.crawl.stages import ExtractLinks
from vfm_curation.metadata import load_entries
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.metadata.wikimedia import articles, views_of_hour
from vfm_curation.metadata.wikipedia import plain_text


def links(run_stage: Any, file: Path, content: bytes) -> tuple[list[tuple[str, str]], list[str]]:
    """Extract the links of a file; return (URL, text) and the reasons of bad samples."""
    file.write_bytes(content)
    events: list[Event] = []
    table = run_stage(
        ExtractLinks(name=f"links-{file.name.replace('.', '-')}", path=str(file), buckets=1), send=events.append
    )
    rows = pq.read_table(next((table.path / "links").iterdir())).to_pylist()
    bad = [event.data["reason"] for event in events if event.type == "bad_sample"]
    return sorted((row["url"], text) for row in rows for text in row["texts"]), bad


@pytest.mark.parametrize("compressed", [True, False])
def test_a_crawl_file_and_its_wat_file_give_the_same_links(run_stage: Any, tmp_path: Path, compressed: bool) -> None:
    packed, suffix = (members, ".gz") if compressed else (b"".join, "")
    warc = links(run_stage, tmp_path / f"0.warc{suffix}", packed(common_crawl_warc()))
    wat = links(run_stage, tmp_path / f"0.warc.wat{suffix}", packed(common_crawl_wat()))
    assert warc == (sorted([*LINKS, HEDGEHOG]), [])
    assert wat == (LINKS, [])


def test_one_member_may_hold_all_records(run_stage: Any, tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(common_crawl_wat()))
    assert links(run_stage, tmp_path / "0.warc.wat.gz", whole) == (LINKS, [])


def test_articles_of_a_dump_with_all_its_fields_and_streams(tmp_path: Path) -> None:
    path = tmp_path / "enwiki-20240501-pages-articles-multistream.xml.bz2"
    path.write_bytes(wikipedia_dump())
    found = [plain_text(text) for text in articles(path)]
    assert len(found) == len(WIKI_TEXTS)
    assert all(text.startswith(beginning) for text, beginning in zip(found, WIKI_TEXTS, strict=True))
    assert not any("gone" in text for text in found)


def test_views_of_one_wikipedia_among_all_sites(tmp_path: Path) -> None:
    path = tmp_path / "pageviews-20180419-000000.gz"
    path.write_bytes(gzip.compress(b"\n".join(PAGE_VIEWS) + b"\n"))
    bad: list[str] = []
    views = views_of_hour(path, "en", on_bad=lambda reason, where: bad.append(f"{reason} {where.rpartition(':')[2]}"))
    assert views == {'"Heroes" (David Bowie album)': 61, "-": 900, "Café": 55, "Caf%C3%A9": 7, "Fox": 120, "": 9}
    assert bad == ["invalid_utf8 8"]
    assert views_of_hour(path, "en", mobile=True)["Fox"] == 160


def test_entries_of_both_are_words_and_titles_without_marks(run_stage: Any, tmp_path: Path) -> None:
    dump, views = tmp_path / "wiki.xml.bz2", tmp_path / "pageviews-20180419-000000.gz"
    dump.write_bytes(wikipedia_dump())
    views.write_bytes(gzip.compress(b"\n".join(PAGE_VIEWS)))
    stage = BuildMetadata(
        name="entries",
        merge=[
            {"type": "wikipedia", "dump": str(dump), "unigram_min_count": 1, "max_bigrams": 0},
            {"type": "pageviews", "paths": str(views), "mobile": True},
        ],
    )
    entries = {row["entry"]: row["source"] for row in load_entries(run_stage(stage)).to_pylist()}
    words = {word for text in WIKI_TEXTS for word in text.split()} | {"Range", "See", "also", "co"}
    assert {entry for entry, source in entries.items() if source == "wikipedia unigram"} == words
    assert {entry for entry, source in entries.items() if source == "wikipedia title"} == {"Fox"}
