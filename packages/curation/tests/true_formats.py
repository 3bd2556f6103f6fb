"""Excerpts of a crawl, a Wikipedia and its page views, made here by the documented formats with their odd cases.

No published file is copied: sizes and licences forbid it. The formats are those of WARC 1.0 and 1.1 (ISO 28500), of
Common Crawl's WARC and WAT files (fields, order and spelling as in its own tour of the formats), of MediaWiki's export
schema 0.11 with the streams of `pages-articles-multistream`, and of Wikimedia's hourly page views.
"""

# ruff: noqa: E501 (lines as the files have them)

from __future__ import annotations

import base64
import bz2
import gzip
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

SITE = "https://fauna.example"
WARCINFO = (
    b"isPartOf: CC-MAIN-2024-22\r\npublisher: Common Crawl\r\nsoftware: Apache Nutch 1.19\r\nformat: WARC File Format 1.1\r\n"
    b"conformsTo: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/\r\n"
)


def digest(content: bytes) -> str:
    """Return a digest as WARC files write it."""
    return f"sha1:{base64.b32encode(hashlib.sha1(content).digest()).decode()}"


def warc_record(kind: str, content: bytes, content_type: str, **fields: str) -> bytes:
    """Return one record."""
    head = {
        "WARC-Type": kind,
        "WARC-Date": "2024-05-18T01:58:10Z",
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, kind + repr(content))}>",
        "Content-Length": str(len(content)),
        "Content-Type": content_type,
        **{name.replace("_", "-"): value for name, value in fields.items()},
        "WARC-Block-Digest": digest(content),
    }
    lines = [f"{name}: {value}" for name, value in head.items()]
    return "\r\n".join(["WARC/1.0", *lines, "", ""]).encode() + content + b"\r\n\r\n"


def http(body: bytes, status: str = "200 OK", content_type: str = "text/html; charset=UTF-8", *more: str) -> bytes:
    """Return a response as Common Crawl stores it: decoded, with the encodings of the transfer renamed."""
    head = [
        f"HTTP/1.1 {status}", "server: nginx", "X-Crawler-content-encoding: gzip", f"content-type: {content_type}",
        "X-Crawler-transfer-encoding: chunked", *more, f"Content-Length: {len(body)}",
    ]  # fmt: skip
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


FOX = """<!DOCTYPE html>
<html lang="de"><head><base href="/tiere/"><title>Füchse</title><style>a { background: url(hg.png) }</style></head>
<body><a href="b.html"><img src="fuchs.jpg?w=1&amp;h=2" alt="Ein Fuchs
im Schnee &#9731;" title="Rotfuchs"></a>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-src="igel.webp" alt="Igel">
<img src="//CDN.fauna.example:443/dachs.png" alt=" "><img src="/ohne-text.png">
<img src="luchs.png" data-image-title="Luchs \N{FOX FACE}"></body></html>"""
CAT = "<html><body><img src='katze.jpg' alt='Kätzchen'><p>Größe</p></body></html>"


def common_crawl_warc() -> list[bytes]:
    """Return the records of a crawl file: each page is a request, a response and metadata; then what is no page."""

    def page(path: str, response: bytes, **fields: str) -> list[bytes]:
        where = {"WARC_IP_Address": "192.0.2.1", "WARC_Target_URI": SITE + path}
        request = f"GET {path} HTTP/1.1\r\nUser-Agent: CCBot/2.0\r\nAccept-Encoding: br,gzip\r\n\r\n".encode()
        found = b'fetchTimeMs: 258\r\ncharset-detected: UTF-8\r\nlanguages-cld2: {"reliable":false}\r\n\r\n'
        return [
            warc_record("request", request, "application/http; msgtype=request", **where),
            warc_record("response", response, "application/http; msgtype=response", **where, **fields),
            warc_record("metadata", found, "application/warc-fields", **where),
        ]

    html = {"WARC_Identified_Payload_Type": "text/html"}
    cut = b"<html><img src='ganz.jpg' alt='whole'>" + b"x" * 200 + b"<img src='halb.jpg' alt='ha"
    return [
        warc_record("warcinfo", WARCINFO, "application/warc-fields", WARC_Filename="CC-MAIN-00000.warc.gz"),
        *page("/fuchs", http(FOX.encode()), **html),
        *page("/latin", http(CAT.encode("latin-1"), "200 OK", "text/html;charset=iso-8859-1"), **html),
        *page("/lang", http(cut), WARC_Truncated="length", **html),
        *page("/weg", http(b"<img src='weg.jpg' alt='error page'>", "404 Not Found")),
        *page("/umzug", http(b"", "301 Moved Permanently", "text/html", f"location: {SITE}/fuchs")),
        *page("/bild.jpg", http(b"\xff\xd8\xff\xe0 no page", "200 OK", "image/jpeg")),
        *page("/robots.txt", http(b"User-agent: *\nDisallow: <img src=r.jpg alt=robots>", "200 OK", "text/plain")),
        warc_record(
            "revisit", b"HTTP/1.1 304 Not Modified\r\n\r\n", "application/http; msgtype=response",
            WARC_Target_URI=f"{SITE}/fuchs", WARC_Profile="http://netpreserve.org/warc/1.0/revisit/identical-payload-digest",
        ),
        warc_record("conversion", "Füchse sind scheu".encode(), "text/plain", WARC_Target_URI=f"{SITE}/fuchs"),
        *page("/leer", http(b"")),
    ]  # fmt: skip


FOX_LINKS: list[dict[str, Any]] = [
    {"path": "STYLE/#text", "url": "hg.png"},
    {"path": "A@/href", "url": "b.html"},
    {"path": "IMG@/src", "url": "fuchs.jpg?w=1&h=2", "alt": "Ein Fuchs\nim Schnee \N{SNOWMAN}", "title": "Rotfuchs"},
    {"path": "IMG@/src", "url": "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "alt": "Igel"},
    {"path": "IMG@/src", "url": "//CDN.fauna.example:443/dachs.png", "alt": " "},
    {"path": "IMG@/src", "url": "/ohne-text.png"},
    {"path": "IMG@/src", "url": "luchs.png", "data-image-title": "Luchs \N{FOX FACE}"},
    {"url": "https://fauna.example/ohne-pfad.jpg", "alt": "no path"},
    {"path": "IMG@/longdesc", "url": "text.html", "alt": "a description"},
    {"path": "SOURCE@/src", "url": "film.mp4"},
]


def common_crawl_wat() -> list[bytes]:
    """Return the records of the WAT file: one for each record of the crawl file, so most are no pages."""

    def envelope(kind: str, path: str, payload: Mapping[str, Any]) -> bytes:
        record = {
            "Container": {
                "Filename": "CC-MAIN-00000.warc.gz", "Compressed": True, "Offset": "80610308",
                "Gzip-Metadata": {"Deflate-Length": "423", "Header-Length": "10", "Footer-Length": "8",
                                  "Inflated-CRC": "1106529533", "Inflated-Length": "626"},
            },
            "Envelope": {
                "Payload-Metadata": payload, "Format": "WARC/1.0", "WARC-Header-Length": "357",
                "WARC-Header-Metadata": {"WARC-Type": kind, "WARC-Target-URI": SITE + path, "Content-Length": "265"},
            },
        }  # fmt: skip
        # Java's writer escapes what is not ASCII, also as surrogate pairs, or not: both are found.
        content = json.dumps(record, separators=(",", ":"), ensure_ascii=path == "/fuchs").encode()
        return warc_record("metadata", content, "application/json", WARC_Target_URI=SITE + path)

    def response(status: str, html: Mapping[str, Any] | None = None) -> dict[str, Any]:
        message = {"Status": status, "Version": "HTTP/1.1", "Reason": "OK"}
        body = {"Response-Message": message, "Headers-Length": "1", "Headers": {"content-type": "text/html"}}
        return {
            "Actual-Content-Type": "application/http; msgtype=response",
            "HTTP-Response-Metadata": body | ({"HTML-Metadata": html} if html else {}),
        }

    request = {"Actual-Content-Type": "application/http; msgtype=request", "HTTP-Request-Metadata": {"Headers": {}}}
    fields = {"Actual-Content-Type": "application/metadata-fields",
              "WARC-Metadata-Metadata": {"Metadata-Records": [{"Name": "fetchTimeMs", "Value": "258"}]}}  # fmt: skip
    head = {"Base": "/tiere/", "Title": "Füchse", "Metas": [{"name": "x", "content": "y"}], "Link": [], "Scripts": []}
    cat = [{"path": "IMG@/src", "url": "katze.jpg", "alt": "Kätzchen"}]
    return [
        warc_record("warcinfo", WARCINFO, "application/warc-fields"),
        envelope("request", "/fuchs", request),
        envelope("response", "/fuchs", response("200", {"Head": head, "Links": FOX_LINKS})),
        envelope("metadata", "/fuchs", fields),
        envelope("response", "/latin", response("200", {"Head": {"Title": "x"}, "Links": cat})),
        envelope("response", "/lang", response("200", {"Links": [{"path": "IMG@/src", "url": "ganz.jpg", "alt": "whole"}]})),
        envelope("response", "/weg", response("404", {"Links": [{"path": "IMG@/src", "url": "weg.jpg", "alt": "error"}]})),
        envelope("response", "/bild.jpg", response("200")),
        envelope("response", "/leer", response("200", {"Head": {}})),
    ]  # fmt: skip


LINKS = [
    ("https://fauna.example/ganz.jpg", "whole"),
    ("https://fauna.example/katze.jpg", "Kätzchen"),
    ("https://fauna.example/tiere/fuchs.jpg?w=1&h=2", "Ein Fuchs im Schnee \N{SNOWMAN}"),
    ("https://fauna.example/tiere/fuchs.jpg?w=1&h=2", "Rotfuchs"),
    ("https://fauna.example/tiere/luchs.png", "Luchs \N{FOX FACE}"),
]
"""What both files say. The hedgehog's address is only in the page: a WAT file has no `data-src`."""
HEDGEHOG = ("https://fauna.example/tiere/igel.webp", "Igel")


def members(records: Sequence[bytes]) -> bytes:
    """Return the records compressed one by one, as Common Crawl's files are."""
    return b"".join(gzip.compress(record, mtime=0) for record in records)


SITEINFO = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xsi:schemaLocation="http://www.mediawiki.org/xml/export-0.11/ http://www.mediawiki.org/xml/export-0.11.xsd" version="0.11" \
xml:lang="en">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>enwiki</dbname>
    <generator>MediaWiki 1.43.0-wmf.3</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="-1" case="first-letter">Special</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Talk</namespace>
    </namespaces>
  </siteinfo>
"""


def wiki_page(title: str, text: str, *, namespace: int = 0, redirect: str = "", slots: str = "", user: str = "") -> str:
    """Return one page of a dump; `slots` are further contents of its revision, `user` who made it."""
    size = len(text.encode())
    whole = (
        f'<text bytes="{size}" sha1="x" xml:space="preserve">{text}</text>' if text else '<text bytes="0" sha1="x" />'
    )
    made_by = user or "<contributor><username>A &amp; B</username><id>1</id></contributor>"
    moved = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{namespace}</ns>\n    <id>12</id>\n    {moved}\n    <revision>\n"
        f"      <id>9</id>\n      <parentid>8</parentid>\n      <timestamp>2024-05-01T00:00:00Z</timestamp>\n      {made_by}\n"
        f"      <minor />\n      <comment>/* Foxes */ &lt;text&gt;</comment>\n      <origin>9</origin>\n"
        f"      <model>wikitext</model>\n      <format>text/x-wiki</format>\n      {whole}\n      <sha1>x</sha1>\n{slots}"
        "    </revision>\n  </page>\n"
    )  # fmt: skip


SLOT = (
    "      <content><role>mediainfo</role><origin>9</origin><model>wikibase-mediainfo</model>"
    '<format>application/json</format><text bytes="2" sha1="x" xml:space="preserve">{}</text></content>\n'
)
ARTICLE = (
    "{{Short description|An animal}}&lt;!-- gone --&gt;'''Foxes''' are [[Canidae|canids]].&lt;ref name=&quot;a&quot;&gt;gone"
    "&lt;/ref&gt;\n[[File:Fox.jpg|thumb|gone]]\n{| class=&quot;wikitable&quot;\n! Range\n|}\n== See also ==\n* [[Red fox]]\n"
    "[[Category:Foxes]]"
)  # fmt: skip
WIKI_TEXTS = ["Foxes are canids", "Red fox", ""]
"""What a reader sees at the beginning of each article: of the redirect, the talk page and the template nothing."""


def wikipedia_dump() -> bytes:
    """Return a dump in several bz2 streams: the head, pages by the hundred, and the end."""
    deleted = '<contributor deleted="deleted" />'
    pages = [
        wiki_page("Fox", ARTICLE, slots=SLOT),
        wiki_page("Foxes", "#REDIRECT [[Fox]]", redirect="Fox"),
        wiki_page("Talk:Fox", "gone", namespace=1),
        wiki_page("Template:Fox", "gone", namespace=10),
        wiki_page("Red fox", "Red fox &amp; co.", user=deleted),
        wiki_page("Empty", ""),
    ]
    streams = [SITEINFO, "".join(pages[:3]), "".join(pages[3:]), "</mediawiki>\n"]
    return b"".join(bz2.compress(stream.encode()) for stream in streams)


PAGE_VIEWS = [
    b"aa Main_Page 3 0",
    b'en "Heroes"_(David_Bowie_album) 61 0',  # csv readers would take the quotes for their own
    b"en - 900 0",  # the page is not known
    b"en Caf\xc3\xa9 55 0",
    b"en Caf%C3%A9 7 0",  # an address that was not decoded
    b"en Category:Foxes 70 0",
    b"en Fox 120 0",
    b"en Fox\xa0tail 5 0",  # cut within a character
    b"en  9 0",  # an empty title
    b"en.b Foxes 80 0",  # Wikibooks
    b"en.m Fox 40 0",
    b"en.m.d fox 60 0",  # the mobile Wiktionary
    b"enm Fox 99 0",
    b"fr Renard 99 0",
    b'"" Fox 1 0',
]
"""Lines of an hourly file: domain, title, views, and a size that has been 0 since 2015."""
