"""Opt-outs and licences of pages: the same from a page and from its WAT record, merged by URL, and filtered."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from filter_runs import passed, run
from test_extract import PAGE, image, no_bad, record, table_of, warc, wat_record
from vfm_curation.crawl.extract_links import links_of_page, links_of_wat, url_hash
from vfm_curation.crawl.stages import ExtractLinks
from vfm_curation.crawl.usage_rights import opts_out

CC = "https://creativecommons.org/licenses/by/4.0/"
CASES: dict[str, tuple[str, str | None, bool, str | None]] = {
    "nothing": ("", None, False, None),
    "meta": ("<meta name=Robots content='noindex, NoAI'>", None, True, None),
    "meta for images": ("<meta name=robots content=noimageai>", None, True, None),
    "another directive": ("<meta name=robots content='noindex, noarchive'>", None, False, None),
    "another meta": ("<meta name=description content='about noai'>", None, False, None),
    "header": ("", "somebot: noai", True, None),
    "link": (f"<link rel='license' href='{CC}'>", None, False, CC),
    "anchor": ("<a rel='nofollow License' href='/terms'>x</a>", None, False, "https://example.org/terms"),
    "base": ("<base href='/shop/'><a rel=license href=terms>x</a>", None, False, "https://example.org/shop/terms"),
}
OF_WAT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "meta": {"Head": {"Metas": [{"name": "Robots", "content": "noindex, NoAI"}]}},
    "meta for images": {"Head": {"Metas": [{"name": "robots", "content": "noimageai"}]}},
    "another directive": {"Head": {"Metas": [{"name": "robots", "content": "noindex, noarchive"}]}},
    "another meta": {"Head": {"Metas": [{"name": "description", "content": "about noai"}, "odd", {"content": 3}]}},
    "header": {},
    "link": {"Head": {"Link": [{"path": "LINK@/href", "url": CC, "rel": "license"}]}},
    "anchor": {"Links": [{"path": "A@/href", "url": "/terms", "rel": "nofollow License"}]},
    "base": {"Head": {"Base": "/shop/"}, "Links": [{"path": "A@/href", "url": "terms", "rel": "license"}]},
}


@pytest.mark.parametrize("name", CASES)
def test_a_page_and_its_wat_record_say_the_same(name: str) -> None:
    head, header, noai, licence = CASES[name]
    body = f"<html><head>{head}</head><body><img src=/a.jpg alt='a dog'></body></html>".encode()
    (of_page,) = links_of_page(body, PAGE, None, no_bad, robots=header)
    wat = wat_record([image("/a.jpg", alt="a dog")])
    response = wat["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]
    response["HTML-Metadata"] |= {key: value for key, value in OF_WAT[name].items() if key != "Links"}
    response["HTML-Metadata"]["Links"] += OF_WAT[name].get("Links", [])
    response["Headers"] = {"x-robots-TAG": header} if header else {}
    (of_wat,) = links_of_wat(wat, no_bad)
    assert of_page == of_wat
    assert (of_page.noai, of_page.license) == (noai, licence)


@pytest.mark.parametrize("text", ["noai", "otherbot: noindex, noimageai", "NOAI,noindex", " noai "])
def test_words_that_opt_out(text: str) -> None:
    assert opts_out([None, 3, text])


@pytest.mark.parametrize("text", ["", "noaim", "no ai", "none", "maxnoai-preview", "noai-preview"])
def test_words_that_do_not(text: str) -> None:
    assert not opts_out([text])


def test_rights_of_all_pages_with_an_image_are_merged_and_filtered(run_stage: Any, tmp_path: Path) -> None:
    pages = [
        warc(b"<img src=/a.jpg alt='a dog'><img src=/b.jpg alt='a cat'>"),
        warc(b"<img src=/a.jpg alt='a dog'>", headers="Content-Type: text/html\r\nX-Robots-Tag: noai"),
        warc(f"<link rel=license href='{CC}'><img src=/b.jpg alt='a cat'><img src=/c.jpg alt='x y'>".encode()),
        warc(b"<link rel=license href=/other><img src=/c.jpg alt='x y'>"),
        record("metadata", "application/json", json.dumps(wat_record([image("/d.jpg", alt="z")])).encode()),
    ]
    (tmp_path / "0.warc.gz").write_bytes(b"".join(map(gzip.compress, pages)))
    events: list[Any] = []
    links = run_stage(ExtractLinks(name="links", path=str(tmp_path / "0.warc.gz"), buckets=2), send=events.append)
    rows = {row["url"].rpartition("/")[2]: (row["noai"], row["license"]) for row in table_of(links)}
    assert rows == {"a.jpg": (True, None), "b.jpg": (False, CC), "c.jpg": (False, None), "d.jpg": (False, None)}
    (values,) = (event.data["values"] for event in events if event.type == "metrics")
    assert values["curation/noai_links"] == 1
    kept = {uid for uid, _, _ in passed(run(run_stage, links, [{"type": "where", "keep": "~noai"}]))}
    assert kept == {url_hash(f"https://example.org/{name}.jpg") for name in "bcd"}
