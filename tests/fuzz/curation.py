"""Targets of curation: lists of entries, crawls, download logs, and the files that its passes leave for one another."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.data import CAPTIONS, NAMES, NUM, TEXTS, caption, read_texts, table, tar
from fuzz.targets import RUN, Target, recipe, vfm

PAGE = "https://example.org/dogs/page.html"
WIKI = "<page><title>t</title><ns>0</ns><revision><text>{}</text></revision></page>\n"


def entries(**source: Any) -> None:
    recipe({"kind": "curation.metadata", "name": "pool", "merge": [source]})


def entry_list(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="utf-8")
    entries(type="list", path=name)


def wordnet() -> None:
    Path("w").mkdir()
    for kind in ("noun", "verb", "adj", "adv"):
        lines = [f"{n:08d} 03 {kind[0]} 01 {word} 0 000 | gloss  \n" for n, word in enumerate(NAMES)]
        Path(f"w/data.{kind}").write_text("  1 licence  \n" + "".join(lines))
    entries(type="wordnet", path="w")


def open_wordnet() -> None:
    Path("w.tab").write_text("# name\tfra\n" + "".join(f"0000{n}-n\tfra:lemma\t{w}\n" for n, w in enumerate(NAMES)))
    entries(type="wordnet", path="w.tab", language="fr")


def pageviews() -> None:
    lines = [f"en {word}_{n} {100 + n} 0" for n, word in enumerate(NAMES * 4)]
    Path("pageviews-20180419-000000.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    entries(type="pageviews", paths="pageviews-*.gz")


def dump() -> None:
    pages = "".join(WIKI.format(" ".join(NAMES * 3)) for _ in range(5))
    text = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo/>\n{pages}</mediawiki>'
    Path("wiki.xml.bz2").write_bytes(bz2.compress(text.encode()))
    entries(type="wikipedia", dump="wiki.xml.bz2", unigram_min_count=1, bigram_min_pmi=-9)


def running_text() -> None:
    Path("t.gz").write_bytes(gzip.compress(("\n".join(CAPTIONS) + "\n").encode(), mtime=0))
    entries(type="wikipedia", text="t.gz", unigram_min_count=1, bigram_min_pmi=-9)


def record(kind: str, content_type: str, content: bytes) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {PAGE}\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000>\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def wat(n: int) -> bytes:
    links = [{"path": "IMG@/src", "url": f"{n}.jpg", "alt": CAPTIONS[n]}]
    envelope = {
        "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": PAGE},
        "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": links}}},
    }
    return record("metadata", "application/json", json.dumps({"Envelope": envelope}).encode())


def warc(n: int) -> bytes:
    page = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<img src='{n}.jpg' alt='caption {n}'>"
    return record("response", "application/http; msgtype=response", page.encode())


def crawl(name: str, records: list[bytes]) -> None:
    zipped = name.endswith(".gz")
    Path(name).write_bytes(b"".join(gzip.compress(one, mtime=0) if zipped else one for one in records))
    recipe({"kind": "curation.extract", "name": "pool", "path": name, "buckets": 2})


def path_list() -> None:
    crawl("a.warc.wat", [wat(n) for n in range(NUM)])
    Path("wat.paths.gz").write_bytes(gzip.compress(b"a.warc.wat\n", mtime=0))
    recipe({"kind": "curation.extract", "name": "pool", "path": "wat.paths.gz", "root": "./", "buckets": 2})


def downloads() -> None:
    rows = [
        {"url": f"https://example.org/{n}.jpg", "caption": CAPTIONS[n], "status": "failed_to_download",
         "error_message": "timed out"} for n in range(NUM)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), "d.parquet", row_group_size=4)
    recipe({"kind": "curation.retry", "name": "pool", "path": "d.parquet"})


PASSES: list[dict[str, Any]] = [
    {"kind": "data.pairs", "name": "pool", "path": "x.tar"},
    {"kind": "curation.metadata", "name": "entries", "captions": "pool", "min_count": 1},
    {"kind": "curation.match", "name": "matches", "pool": "pool", "metadata": "entries"},
    {"kind": "curation.balance", "name": "curated", "matches": "matches", "t": 3},
]
LATER: list[dict[str, Any]] = [
    {"kind": "curation.balance", "name": "other", "matches": "matches", "t": 2, "seed": 1},
    {"kind": "curation.export", "name": "out", "subset": "curated", "tars": True},
    {"kind": "curation.filter", "name": "kept", "pool": "curated", "filters": [{"type": "caption_length"}]},
]


def passes() -> None:
    """Run the passes; the recipe that is fuzzed reads what they published."""
    tar(txt=caption)
    recipe(*PASSES)
    vfm(*RUN)
    recipe(*PASSES, *LATER)


def read_links() -> dict[str, Any]:
    """Return the links of the artifact `pool`; each skipped record counts."""
    manifest = json.loads(Path("store/runs/r/artifacts/pool/manifest.json").read_text())
    return {"items": read_texts()["items"], "bad": sum(manifest["bad_samples"].values())}


def csv_without_images() -> None:
    table("t.csv", TEXTS)
    recipe({"kind": "data.pairs", "name": "pool", "path": "t.csv", "images": False}, *PASSES[1:])


def uid_list() -> None:
    """Write a table of captions and a list of uids, as DataComp has it, of every second one."""
    uids = [f"{n:032x}" for n in range(NUM)]
    table("t.csv", [{"caption": CAPTIONS[n], "uid": uids[n]} for n in range(NUM)])
    halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids[::2]]
    np.save("u.npy", np.array(halves, dtype=[("f0", "<u8"), ("f1", "<u8")]))
    kept = {"kind": "curation.filter", "name": "kept", "pool": "pool", "filters": [{"type": "uids", "path": "u.npy"}]}
    recipe({"kind": "data.pairs", "name": "pool", "path": "t.csv", "images": False}, kept)


def crawled(name: str, record: Callable[[int], bytes], *, counts: bool = True) -> Target:
    """Return the target of a crawl file with a record for each number."""
    return Target(
        name.removeprefix("a."),
        lambda: crawl(name, [record(n) for n in range(NUM)]),
        (name,),
        read=read_links,
        counts=counts,
    )


CURATION = [
    *(
        Target(f"entries in {name}", lambda name=name, text=text: entry_list(name, text), (name,))
        for name, text in {
            "e.txt": "\n".join(NAMES), "e.json": json.dumps({"en": {"cat": "wordnet"}, "de": {"Katze": "wordnet"}}),
            "e.csv": "".join(f"{word},3\n" for word in NAMES),
        }.items()
    ),
    Target("WordNet as entries", wordnet, ("w/*",)),
    Target("open WordNet", open_wordnet, ("w.tab",)),
    Target("page views", pageviews, ("*.gz",)),
    Target("Wikipedia dump", dump, ("*.bz2",)),
    Target("running text", running_text, ("t.gz",)),
    # Without a checksum a changed letter may make a link another tag, so only gzipped records can be counted.
    crawled("a.warc.wat", wat, counts=False),
    crawled("a.warc.wat.gz", wat),
    crawled("a.warc", warc, counts=False),
    crawled("a.warc.gz", warc),
    Target("list of crawl files", path_list, ("wat.paths.gz",)),
    Target("img2dataset's downloads", downloads, ("d.parquet",), read=read_links),
    Target("list of uids", uid_list, ("u.npy",), names=("uids",)),
    Target("curation of captions alone", csv_without_images, ("t.csv",)),
    Target("results of curation's passes", passes, ("store/*/*.parquet", "store/*/*.json", "store/*/*")),
]  # fmt: skip
