"""Links from hand-made crawl files: URLs, texts, broken records; the table as a pool; failed downloads."""

from __future__ import annotations

import gzip
import io
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from vfm.data import BadSample, open_dataset
from vfm.plugin import LinkTable, UserError
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.crawl.extract import LINKS, ExtractJob, extract_file, in_buckets
from vfm_curation.crawl.extract_links import Link, links_of_page, links_of_wat, resolve, url_hash
from vfm_curation.crawl.extract_records import read_records
from vfm_curation.crawl.image_address import is_placeholder, largest_size
from vfm_curation.crawl.retry import RetryJob, retry_file
from vfm_curation.crawl.stages import ExtractLinks, RetryLinks
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.shard_files import finished_summary, read_batch, write_batches

PAGE = "https://example.org/dogs/page.html"


def record(kind: str, content_type: str, content: bytes, page: str = PAGE) -> bytes:
    """Return one WARC record."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {page}\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{hash((page, content)) & 0xFFFF:08d}>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def wat_record(links: list[dict[str, Any]], page: str = PAGE, base: str | None = None) -> dict[str, Any]:
    """Return the record of a page in a WAT file."""
    html = {"Links": links, **({"Head": {"Base": base}} if base else {})}
    return {
        "Envelope": {
            "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": page},
            "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": html}},
        }
    }


def image(url: str, **texts: str) -> dict[str, Any]:
    return {"path": "IMG@/src", "url": url, **{name.replace("_", "-"): text for name, text in texts.items()}}


def wat(links: list[dict[str, Any]], page: str = PAGE) -> bytes:
    return record("metadata", "application/json", json.dumps(wat_record(links, page)).encode(), page)


def warc(body: bytes, page: str = PAGE, headers: str = "Content-Type: text/html") -> bytes:
    http = f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + body
    return record("response", "application/http; msgtype=response", http, page)


def found(links: Any) -> list[tuple[str, int, str]]:
    return [(link.url, link.field, link.text) for link in links]


def no_bad(reason: str, where: str) -> None:
    raise AssertionError(f"{where}: {reason}")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("a.jpg", "https://example.org/dogs/a.jpg"),
        ("/a.jpg", "https://example.org/a.jpg"),
        ("../a.jpg?w=1#top", "https://example.org/a.jpg?w=1"),
        ("//cdn.example.org/a.jpg", "https://cdn.example.org/a.jpg"),
        (" HTTP://Example.org/a b.jpg\n", "http://example.org/a b.jpg"),
        ("a\n.jpg", "https://example.org/dogs/a.jpg"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", None),
        ("javascript:void(0)", None),
        ("", None),
        ("#top", None),
        ("http://", None),
        ("//[broken", None),
        ("\ud800.jpg", None),
    ],
)
def test_addresses_are_resolved_as_browsers_do(address: str, expected: str | None) -> None:
    assert resolve(PAGE, address) == expected


def test_url_hash_is_the_first_24_digits_of_sha224() -> None:
    assert url_hash("abc") == "23097d223405d8228642a477"  # FIPS 180-4's example


def test_wat_and_page_give_the_same_links() -> None:
    body = (
        "<html><head><base href='/pets/'></head><body><IMG SRC='a.jpg' alt='A dog &amp; a cat\r\n\n by the sea '"
        " title='Dogs'><img src=b.jpg data-image-title='okapi'><img src=c.jpg alt=''><img alt='no address'>"
        "<a href=d.jpg title='a link'>x</a><img src='data:,' alt='inline'></body></html>"
    )
    links = [
        image("a.jpg", alt="A dog & a cat\r\n\n by the sea ", title="Dogs"),
        image("b.jpg", data_image_title="okapi"),
        image("c.jpg", alt=""),
        {"path": "IMG@/src", "alt": "no address"},
        {"path": "A@/href", "url": "d.jpg", "title": "a link"},
        {"path": "IMG@/srcset", "url": "e.jpg 2x", "alt": "sizes"},
        image("data:,", alt="inline"),
        "not even a record",
    ]
    expected = [
        ("https://example.org/pets/a.jpg", 0, "A dog & a cat  by the sea"),
        ("https://example.org/pets/a.jpg", 1, "Dogs"),
        ("https://example.org/pets/b.jpg", 2, "okapi"),
    ]
    assert found(links_of_page(body.encode(), PAGE, None, no_bad)) == expected
    assert found(links_of_wat(wat_record(links, base="/pets/"), no_bad)) == expected


@pytest.mark.parametrize(
    "strange",
    [{}, {"Envelope": 3}, wat_record("none"), wat_record([{"path": "IMG@/src", "url": 3, "alt": "x"}])],  # type: ignore[arg-type]
)
def test_records_with_another_structure_have_no_links(strange: dict[str, Any]) -> None:
    assert found(links_of_wat(strange, no_bad)) == []


@pytest.mark.parametrize(("status", "number"), [("200", 1), ("404", 0), ("301", 0)])
def test_pages_with_an_error_status_have_no_links(status: str, number: int) -> None:
    page = wat_record([image("a.jpg", alt="a dog")])
    page["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["Response-Message"] = {"Status": status}
    assert len(found(links_of_wat(page, no_bad))) == number


@pytest.mark.parametrize("base", ["http://[broken", "data:,", ""])
def test_invalid_base_is_ignored(base: str) -> None:
    expected = [("https://example.org/dogs/a.jpg", 0, "a dog")]
    page = f"<base href='{base}'><img src=a.jpg alt='a dog'>".encode()
    assert found(links_of_page(page, PAGE, None, no_bad)) == expected
    assert found(links_of_wat(wat_record([image("a.jpg", alt="a dog")], base=base), no_bad)) == expected


def test_old_wat_files_are_decoded_on_request() -> None:
    links = wat_record([image("a.jpg?x=1&amp;y=2", alt="&quot;dog&quot;")])
    assert found(links_of_wat(links, no_bad)) == [("https://example.org/dogs/a.jpg?x=1&amp;y=2", 0, "&quot;dog&quot;")]
    assert found(links_of_wat(links, no_bad, unescape=True)) == [("https://example.org/dogs/a.jpg?x=1&y=2", 0, '"dog"')]


@pytest.mark.parametrize(
    ("encoding", "charset", "meta"),
    [("utf-8", None, ""), ("iso-8859-2", "ISO-8859-2", ""), ("windows-1251", None, "<meta charset=windows-1251>")],
)
def test_encoding_is_from_http_or_the_page(encoding: str, charset: str | None, meta: str) -> None:
    word = "pies żółty" if "8859" in encoding else "собака и кот" if "1251" in encoding else "猫とねこ"
    body = f"<html>{meta}<img src=a.jpg alt='{word}'>".encode(encoding)
    assert [text for _, _, text in found(links_of_page(body, PAGE, charset, no_bad))] == [word]


def test_texts_that_cannot_be_used_are_reported() -> None:
    bad: list[tuple[str, str]] = []
    links = wat_record([image("a.jpg", alt="x" * 70_000, title="fine"), image("b.jpg", alt="half \ud800 a pair")])
    assert [text for _, _, text in found(links_of_wat(links, lambda *one: bad.append(one)))] == ["fine"]
    assert bad == [("caption_too_long", PAGE), ("wrong_encoding", PAGE)]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 2**16), compressed=st.booleans())
def test_a_broken_record_loses_only_itself(tmp_path: Path, data: Any, seed: int, compressed: bool) -> None:
    rng = random.Random(seed)
    pages = [f"https://example.org/{i}" for i in range(8)]
    parts = [wat([image("a.jpg", alt=rng.randbytes(rng.randint(1, 200)).hex())], page) for page in pages]
    if compressed:
        parts = [gzip.compress(part, mtime=0) for part in parts]
    broken = data.draw(st.integers(0, 7))
    part = bytearray(parts[broken])
    place = data.draw(st.integers(0, len(part) - 1))
    fault = data.draw(st.sampled_from(["flip", "cut", "drop", "garbage", "end of file"]))
    if fault == "flip":
        part[place] ^= 1 << data.draw(st.integers(0, 7))
    elif fault == "garbage":
        part[:] = rng.randbytes(len(part))
    else:
        del part[place : place + 9 if fault == "drop" else len(part)]
    rest = [] if fault == "end of file" else parts[broken + 1 :]
    path = tmp_path / ("crawl.wat.gz" if compressed else "crawl.wat")
    path.write_bytes(b"".join([*parts[:broken], part, *rest]))
    bad: list[tuple[str, str]] = []
    seen = {
        record.headers.get("WARC-Target-URI") for record, _ in read_records(str(path), lambda *one: bad.append(one))
    }
    assert {*pages[:broken], *pages[broken + 1 : broken + 1 + len(rest)]} <= seen
    assert len(bad) <= 1
    assert all(reason == "broken_record" for reason, _ in bad)


@pytest.mark.parametrize("level", [None, 0, 6], ids=["plain", "stored", "deflated"])
@pytest.mark.parametrize("last", [True, False])
def test_a_record_cut_anywhere_is_counted_once_and_the_others_are_read(
    tmp_path: Path, level: int | None, last: bool
) -> None:
    """A record that is cut goes on with the next one's bytes: they once made up its header, or its content's length."""
    rng = random.Random(0)
    path = tmp_path / ("crawl.wat" if level is None else "crawl.wat.gz")
    pages = [f"https://example.org/{i}" for i in range(4)]
    others = [pages[0]] if last else [pages[0], *pages[2:]]
    for num_bytes in (5, 20, 60):
        parts = [wat([image("a.jpg", alt=rng.randbytes(num_bytes).hex())], page) for page in pages]
        if level is not None:
            parts = [gzip.compress(part, level, mtime=0) for part in parts]
        for cut in range(1, len(parts[1])):
            path.write_bytes(b"".join([parts[0], parts[1][:cut], *([] if last else parts[2:])]))
            bad = Counter[str]()
            records = read_records(str(path), lambda reason, where, bad=bad: bad.update([reason]))
            seen = []
            for record, content in records:
                seen.append(record.headers.get("WARC-Target-URI"))
                assert json.loads(content)["Envelope"]["WARC-Header-Metadata"]["WARC-Target-URI"] == seen[-1], cut
            if len(seen) > len(others):  # only the line breaks behind the content are lost
                assert level is None
                assert cut >= len(parts[1]) - 4
                assert not bad
            else:
                assert seen == others, cut
                assert bad == {"broken_record": 1}, cut


def test_a_field_that_ends_like_a_version_line_is_not_the_next_record(tmp_path: Path) -> None:
    page, path = "https://iipc.example/specifications/WARC/1.1", tmp_path / "crawl.wat"
    records = [wat([image("a.jpg", alt="a dog")], page), wat([image("b.jpg", alt="a cat")])]
    path.write_bytes(b"\r\n" + (20 * b"\r\n").join([*records, b""]))  # and empty lines are no gap
    seen = [record.headers.get("WARC-Target-URI") for record, _ in read_records(str(path), no_bad)]
    assert seen == [page, PAGE]


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError(), OSError(5, "I/O error")])
def test_a_read_error_is_not_a_broken_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    class BrokenStream(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise error
            return super().read(size)

    texts = random.Random(0).randbytes(400_000).hex()
    parts = [gzip.compress(wat([image("a.jpg", alt=texts[i : i + 4000])])) for i in range(0, len(texts), 4000)]
    monkeypatch.setattr("vfm.storage.files.open_binary", lambda path: BrokenStream(b"".join(parts)))
    with pytest.raises(UserError, match=r"^https://crawl/0\.warc\.wat\.gz: cannot be read: "):
        list(read_records("https://crawl/0.warc.wat.gz", no_bad))


def crawl(tmp_path: Path) -> list[str]:
    """Write a WAT and a WARC file with one URL in both, a broken member and a broken record."""
    first = [
        record("warcinfo", "application/warc-fields", b"software: test"),
        wat([image("a.jpg", alt="a dog", title="pets"), image("b.jpg", alt="a cat")]),
        wat([image("/dogs/a.jpg", alt="a dog"), image("c.jpg", alt="the okapi")], "https://example.org/x/y"),
        record("metadata", "application/json", b"{broken"),
        wat([image("lost.jpg", alt="lost")]),
        wat([image("d.jpg", alt="a lighthouse")]),
    ]
    second = [
        warc(b"<img src=a.jpg alt='another dog'><img src=a.jpg alt='a dog'>"),
        warc(b"<img src=e.jpg alt='no page'>", headers="Content-Type: image/svg+xml"),
        warc(
            gzip.compress(b"<img src=f.jpg alt='packed'>"), headers="Content-Type: text/html\r\nContent-Encoding: gzip"
        ),
    ]
    members = [gzip.compress(part) for part in first]
    members[4] = members[4][:40]
    paths = [tmp_path / "0.warc.wat.gz", tmp_path / "1.warc.gz"]
    paths[0].write_bytes(b"".join(members))
    paths[1].write_bytes(b"".join(gzip.compress(part) for part in second))
    return [str(path) for path in paths]


def table_of(links: LinkTable) -> list[dict[str, Any]]:
    return [row for part in sorted((links.path / "links").iterdir()) for row in pq.read_table(part).to_pylist()]


def test_links_of_all_files_are_merged_and_sorted(run_stage: Any, tmp_path: Path) -> None:
    paths, events = crawl(tmp_path), []
    links = run_stage(ExtractLinks(name="links", path=paths, buckets=3), send=events.append)
    rows = table_of(links)
    by_name = {row["url"].rpartition("/")[2]: row for row in rows}
    assert sorted(by_name) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "f.jpg"]
    assert by_name["a.jpg"]["texts"] == ["a dog", "another dog", "pets"]  # alt before title
    assert by_name["a.jpg"]["caption"] == "a dog"
    assert by_name["c.jpg"]["url"] == "https://example.org/x/c.jpg"
    assert [row["uid"] for row in rows] == sorted(url_hash(row["url"]) for row in rows)
    assert links.num_samples == 5
    reasons = [event.data["reason"] for event in events if event.type == "bad_sample"]
    assert sorted(reasons) == ["broken_json", "broken_record"]
    for other in ({"path": paths[::-1], "buckets": 1}, {"path": paths, "buckets": 7, "runtime": {"workers": 2}}):
        again = run_stage(ExtractLinks(name=f"links{other['buckets']}", **other))
        assert table_of(again) == rows


@settings(max_examples=30)
@given(names=st.lists(st.integers(0, 10**6), unique=True), num_buckets=st.integers(1, 40))
def test_buckets_are_ranges_of_uids_that_can_be_read_separately(names: list[int], num_buckets: int) -> None:
    links = [Link(f"https://a/{name}.jpg", 0, "a dog") for name in names]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "links/0.arrow"
        file.parent.mkdir()
        write_batches(file, in_buckets(links, num_buckets), LINKS, "made", {"num_texts": len(links)})
        assert finished_summary(file, "made") == {"num_texts": len(links)}
        assert finished_summary(file, "other") is None
        for bucket in range(num_buckets):
            low, high = (round(2**32 * place / num_buckets) for place in (bucket, bucket + 1))
            inside = [link.url for link in links if low <= int(url_hash(link.url)[:8], 16) < high]
            assert read_batch(file, bucket)["url"].to_pylist() == sorted(inside, key=url_hash)
        file.write_bytes(file.read_bytes()[:-30])
        assert finished_summary(file, "made") is None


def test_link_table_is_a_pool_to_curate(run_stage: Any, tmp_path: Path) -> None:
    links = run_stage(ExtractLinks(name="links", path=crawl(tmp_path), buckets=2))
    source = open_dataset(links)
    with pytest.raises(BadSample, match="missing_image"):
        source[0]
    entries = tmp_path / "entries.txt"
    entries.write_text("dog\nokapi\n")
    metadata = run_stage(BuildMetadata(name="entries", path=str(entries)))
    matches = run_stage(MatchTexts(name="matches", pool="p", metadata="m"), p=links, m=metadata)
    assert matches.num_texts == 7
    assert matches.num_matched == 3
    subset = run_stage(MetaclipBalance(name="curated", matches="x", t=10), x=matches)
    kept = open_dataset(subset)
    texts = [text for shard in range(2) for text in kept.texts_of_shard(shard)["text"].to_pylist()]
    assert sorted(texts) == ["a dog", "another dog", "the okapi"]


def test_files_are_taken_from_a_list_of_paths(run_stage: Any, tmp_path: Path) -> None:
    crawl(tmp_path)
    listed = tmp_path / "wat.paths.gz"
    listed.write_bytes(gzip.compress(b"0.warc.wat.gz\n1.warc.gz\n"))
    stage = ExtractLinks(name="links", path=str(listed), root=f"{tmp_path}/", num_files=1)
    assert {row["url"].rpartition("/")[2] for row in table_of(run_stage(stage))} == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}


def test_listed_files_are_part_of_the_identity_and_read_again_when_changed(run_stage: Any, tmp_path: Path) -> None:
    first, second = crawl(tmp_path)
    listed = tmp_path / "wat.paths"
    listed.write_text(f"0.warc.wat.gz\n{second}\nhttps://elsewhere/2.warc.gz\n")  # one is absolute
    stage = ExtractLinks(name="links", path=str(listed), root=str(tmp_path))
    assert list(stage.sources()) == [str(listed), first, second]
    stage = stage.model_copy(update={"num_files": 2})
    before = table_of(run_stage(stage))

    work = tmp_path / "again"
    work.mkdir()
    (work / "links").mkdir()
    job = ExtractJob(work / "paths.txt", "", work / "links", work / "table", 2, unescape=False)
    job.paths.write_text(first)
    num_texts = extract_file(job, 0).num_texts
    assert 0 < num_texts < len(before) + 4
    Path(first).write_bytes(b"")
    assert extract_file(job, 0).num_texts == 0


def test_unreadable_root_is_an_error_before_the_run(tmp_path: Path) -> None:
    listed = tmp_path / "wat.paths"
    listed.write_text("0.warc.wat.gz\n")
    with pytest.raises(UserError, match="nowhere://x/: not a valid fsspec address"):
        ExtractLinks(name="links", path=str(listed), root="nowhere://x/").preflight(None)  # type: ignore[arg-type]
    ExtractLinks(name="links", path=str(listed)).preflight(None)  # type: ignore[arg-type]
    listed.with_suffix(".paths.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"wat\.paths\.gz: not a readable list of paths"):
        list(ExtractLinks(name="links", path=str(listed.with_suffix(".paths.gz"))).sources())
    listed.with_suffix(".paths.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"wat\.paths\.gz: expected a list of paths, got an empty file"):
        list(ExtractLinks(name="links", path=str(listed.with_suffix(".paths.gz"))).sources())


def test_files_without_images_are_an_error(run_stage: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.warc.gz").write_bytes(b"")
    with pytest.raises(UserError, match="links: no image with a text in 1 files"):
        run_stage(ExtractLinks(name="links", path=str(tmp_path / "empty.warc.gz")))


def test_failed_downloads_are_listed_to_try_again(run_stage: Any, tmp_path: Path) -> None:
    rows = [
        ("https://a/1.jpg", "success", None, ["a dog"]),
        ("https://a/2.jpg", "failed_to_download", "HTTP Error 404: Not Found", ["a cat"]),
        ("https://a/3.jpg", "failed_to_download", "<urlopen error timed out>", ["a cat", "pets"]),
        ("https://a/4.jpg", "failed_to_resize", None, ["okapi"]),
        ("https://a/5.jpg", None, None, None),
    ]
    columns = dict(zip(("url", "status", "error_message", "texts"), map(list, zip(*rows, strict=True)), strict=True))
    columns["caption"] = [texts[0] if texts else None for texts in columns["texts"]]
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    links = run_stage(RetryLinks(name="again", path=str(tmp_path / "*.parquet")))
    assert [(row["url"], row["caption"], row["texts"]) for row in table_of(links)] == [
        ("https://a/3.jpg", "a cat", ["a cat", "pets"]),
        ("https://a/4.jpg", "okapi", ["okapi"]),
        ("https://a/5.jpg", None, []),
    ]
    with pytest.raises(UserError, match=r"hopeless: expected a regular expression of RE2, got \(\?=x"):
        RetryLinks(name="x", path=str(tmp_path / "*.parquet"), hopeless="(?=x").preflight(None)  # type: ignore[arg-type]
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "00000.parquet")
    with pytest.raises(UserError, match="expected img2dataset's output with a column 'status', got url"):
        run_stage(RetryLinks(name="other", path=str(tmp_path / "*.parquet")))


def test_damaged_lists_of_downloads_lose_their_damaged_rows_alone(run_stage: Any, tmp_path: Path) -> None:
    rows = [
        {"url": f"https://a/{n:04d}.jpg", "caption": "a dog", "status": "failed", "error_message": ""}
        for n in range(12)
    ]
    rows[0]["url"] = None  # type: ignore[assignment]
    path = tmp_path / "00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    data[data.index(b"0003.jpg", data.index(b"0002.jpg"))] = 0xFF  # behind the page's statistics
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[place : place + 20] = b"\xff" * 20
    path.write_bytes(data)
    links = run_stage(RetryLinks(name="again", path=str(path)))
    assert [row["url"] for row in table_of(links)] == [f"https://a/{n:04d}.jpg" for n in (1, 2, 8, 9, 10, 11)]
    (tmp_path / "out").mkdir()
    summary = retry_file(RetryJob((str(path),), "never", tmp_path / "out"), 0)
    assert summary.bad == {"unreadable_row": 4, "missing_url": 1, "wrong_encoding": 1}
    pq.write_table(pa.table({"url": [1], "status": [2], "error_message": [""]}), path)
    with pytest.raises(UserError, match="expected texts in the column"):
        run_stage(RetryLinks(name="other", path=str(path)))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("HTTP://Example.ORG:80/A.jpg", "http://example.org/A.jpg"),
        ("https://User@EXAMPLE.org:443/a?B=\\", "https://User@example.org/a?B=\\"),
        ("https://example.org:80/a", "https://example.org:80/a"),
        ("\\img\\a.jpg", "https://example.org/img/a.jpg"),
        ("//Other.org\\a.jpg", "https://other.org/a.jpg"),
    ],
)
def test_one_image_has_one_url(address: str, expected: str) -> None:
    assert resolve(PAGE, address) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("charset", ["windows-1252", "iso-8859-1", "utf-8", None])
def test_a_byte_order_mark_goes_before_the_http_charset(encoding: str, charset: str | None) -> None:
    body = '\ufeff<img src="a.jpg" alt="Köln 狗">'.encode(encoding)
    assert [link.text for link in links_of_page(body, PAGE, charset, no_bad)] == ["Köln 狗"]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("src='real.jpg' data-src='other.jpg' srcset='2.jpg 2x'", "real.jpg"),
        ("data-src='late.jpg'", "late.jpg"),
        ("src='' data-src='late.jpg'", "late.jpg"),
        ("src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' data-src='late.jpg'", "late.jpg"),
        ("src='data:,' data-src='data:,' srcset='s.jpg 320w, l.jpg 1024w, m.jpg 640w'", "l.jpg"),
        ("src='/img/blank.gif?v=2' data-original='late.jpg'", "late.jpg"),
        ("src='1x1-transparent.png' data-srcset='s.jpg, l.jpg 2x'", "l.jpg"),
        ("src='blank.gif'", "blank.gif"),
        ("srcset='data:, 1x, b.jpg 2x'", "b.jpg"),
    ],
)
def test_the_picture_is_found_where_src_is_a_placeholder(attributes: str, expected: str) -> None:
    page = f"<img {attributes} alt='a dog'>".encode()
    assert found(links_of_page(page, PAGE, None, no_bad)) == [(f"https://example.org/dogs/{expected}", 0, "a dog")]


@pytest.mark.parametrize(
    "name", ["loading.gif", "img/lazy_placeholder.svg", "Transparent-Pixel.png", "spacer.gif?x=/a.jpg"]
)
def test_names_of_placeholders(name: str) -> None:
    assert is_placeholder(name)


@pytest.mark.parametrize(
    "name", ["google-pixel-8.jpg", "loading-dock.jpg", "1.jpg", "white.png", "blank/photo.jpg", ""]
)
def test_names_of_pictures(name: str) -> None:
    assert not is_placeholder(name)


@pytest.mark.parametrize(
    ("srcset", "expected"),
    [
        ("", None),
        (" , ", None),
        ("a.jpg", "a.jpg"),
        ("a.jpg 1x,b.jpg 1.5x", "b.jpg"),
        ("a,b.jpg 100w, c,d.jpg 99w", "a,b.jpg"),
        ("a.jpg, b.jpg", "a.jpg"),
        ("a.jpg 600w 400h, b.jpg 300w", "a.jpg"),
        (
            "https://x.org/w_100,h_50/a.jpg 100w,\n\thttps://x.org/w_200,h_100/a.jpg 200w",
            "https://x.org/w_200,h_100/a.jpg",
        ),
    ],
)
def test_the_largest_candidate_of_a_srcset(srcset: str, expected: str | None) -> None:
    assert largest_size(srcset) == expected
