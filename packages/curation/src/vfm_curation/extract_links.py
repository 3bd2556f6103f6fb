"""Images with texts on a web page: from the page itself, or from what a WAT file says of it.

One rule for texts, whatever they come from: HTML entities are decoded, each run of line breaks becomes one space, and
space around the text goes; nothing else is changed. (The released curation code does this for WAT files, and joins the
words around a line break for pages.)

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.2; the WAT format: Common Crawl.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from vfm.data.captions import clean_captions, field_of
from vfm.data.sample import BadSample

FIELDS = ("alt", "title", "data-image-title")  # in the order in which a link's texts are listed
IMAGE_PATH = "IMG@/src"
LINKS, BASE, STATUS = (
    f"Envelope.Payload-Metadata.HTTP-Response-Metadata.{rest}"
    for rest in ("HTML-Metadata.Links", "HTML-Metadata.Head.Base", "Response-Message.Status")
)
TARGET = "Envelope.WARC-Header-Metadata.WARC-Target-URI"
HAS_IMAGE = re.compile(rb"<img\b", re.IGNORECASE)
_BREAKS = re.compile(r"[\r\n]+")
_NOT_IN_URLS = re.compile(r"[\t\r\n]")  # browsers leave these out of an address

OnBad = Callable[[str, str], None]


@dataclass(frozen=True)
class Link:
    """The address of an image, with one text. `field` is the place in FIELDS of the attribute that it stood in."""

    url: str
    field: int
    text: str


def url_hash(url: str) -> str:
    """The first 24 hex digits of SHA-224, by which the paper names an image."""
    return hashlib.sha224(url.encode()).hexdigest()[:24]


def resolve(base: str, address: str) -> str | None:
    """The absolute http(s) address that an image's `src` means on the page `base`, without fragment; None if none."""
    address = _NOT_IN_URLS.sub("", address.strip()).partition("#")[0]
    if not address:
        return None
    try:
        url = address if address[:8].lower().startswith(("http://", "https://")) else urljoin(base, address)
        url.encode()
        parts = urlsplit(url)
        return url if parts.scheme in ("http", "https") and parts.hostname else None
    except ValueError:
        return None


def links_of_wat(record: Mapping[str, Any], on_bad: OnBad, *, unescape: bool = False) -> Iterator[Link]:
    """The images with texts of one page, from its record in a WAT file; none of a page of errors.

    Args:
        record: the JSON of the record.
        on_bad: told (reason, where) of what cannot be used.
        unescape: decode HTML entities, which Common Crawl has left in its WAT files until August 2019.
    """
    page = field_of(record, TARGET)
    links = field_of(record, LINKS)
    if not isinstance(page, str) or not isinstance(links, list) or field_of(record, STATUS) not in (None, "200"):
        return
    decoded = html.unescape if unescape else str
    base = field_of(record, BASE)
    base = (isinstance(base, str) and resolve(page, base)) or page
    for link in links:
        if isinstance(link, Mapping) and link.get("path") == IMAGE_PATH and isinstance(link.get("url"), str):
            values = [link.get(name) for name in FIELDS]
            texts = [decoded(value) if isinstance(value, str) else None for value in values]
            yield from _links(base, decoded(link["url"]), texts, page, on_bad)


def links_of_page(body: bytes, page: str, charset: str | None, on_bad: OnBad) -> Iterator[Link]:
    """The images with texts of an HTML page.

    Args:
        body: the page as it came, without transfer or content encoding.
        page: its address.
        charset: the encoding that HTTP tells; else the page says it, or its bytes do.
        on_bad: told (reason, where) of what cannot be used.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
    from resiliparse.parse.html import HTMLTree

    if not HAS_IMAGE.search(body):
        return
    encoding = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    document: Any = HTMLTree.parse_from_bytes(
        body, encoding or detect_encoding(body, from_html_meta=True) or "utf-8"
    ).document
    first = document.query_selector("base[href]")
    base = (first and resolve(page, first.getattr("href"))) or page
    for image in document.query_selector_all("img[src]"):
        yield from _links(base, image.getattr("src"), [image.getattr(name) for name in FIELDS], page, on_bad)


def _links(base: str, address: str, texts: list[str | None], page: str, on_bad: OnBad) -> Iterator[Link]:
    if not any(texts) or (url := resolve(base, address)) is None:
        return
    for field, text in enumerate(texts):
        try:
            for cleaned in clean_captions(_BREAKS.sub(" ", text) if text else None, page):
                yield Link(url, field, cleaned)
        except BadSample as bad:
            on_bad(bad.reason, bad.where)
