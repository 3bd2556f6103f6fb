"""Find images with texts on a web page, or in its record in a WAT file.

Both kinds of text are treated alike: HTML entities are decoded, each run of line breaks becomes one space, and
surrounding space is removed. Nothing else is changed. (The released curation code does the same for WAT files. For
pages it joins the words around a line break.)

Source: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671), section 3.2. The WAT format: Common Crawl.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin, urlsplit

from vfm.data import BadSample, clean_captions, field_of
from vfm_curation.crawl.image_address import addresses
from vfm_curation.crawl.usage_rights import Rights, rights_in_page, rights_in_wat

FIELDS = ("alt", "title", "data-image-title")  # in the order in which a link's texts are listed
IMAGE_PATH = "IMG@/src"
_RESPONSE = "Envelope.Payload-Metadata.HTTP-Response-Metadata"
LINKS = f"{_RESPONSE}.HTML-Metadata.Links"
BASE = f"{_RESPONSE}.HTML-Metadata.Head.Base"
STATUS = f"{_RESPONSE}.Response-Message.Status"
TARGET = "Envelope.WARC-Header-Metadata.WARC-Target-URI"
HAS_IMAGE = re.compile(rb"<img\b", re.IGNORECASE)
_BREAKS = re.compile(r"[\r\n]+")
_NOT_IN_URLS = re.compile(r"[\t\r\n]")  # browsers remove these from a URL

DEFAULT_PORTS = {"http": ":80", "https": ":443"}
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}

OnBad = Callable[[str, str], None]


@dataclass(frozen=True)
class Link:
    """The URL of an image with one text.

    Attributes:
        url: Address of the image.
        field: Index in FIELDS of the attribute that holds the text.
        text: The text.
        noai: Whether the page opts out of training.
        license: Address of the page's licence.
    """

    url: str
    field: int
    text: str
    noai: bool = False
    license: str | None = None


def url_hash(url: str) -> str:
    """Compute the first 24 hex digits of SHA-224. The paper uses them as the name of an image."""
    return hashlib.sha224(url.encode()).hexdigest()[:24]


def resolve(base: str, address: str) -> str | None:
    """Resolve the `src` of an image on a page.

    Args:
        base: URL of the page.
        address: Value of the attribute.

    Returns:
        An http(s) URL without fragment, or None for other addresses.
    """
    address = _NOT_IN_URLS.sub("", address.strip()).split("#", 1)[0]
    if not address:
        return None
    path, mark, query = address.partition("?")
    address = path.replace("\\", "/") + mark + query  # as browsers do
    try:
        if address[:8].lower().startswith(("http://", "https://")):
            url = address
        else:
            url = urljoin(base, address)
        # Lone surrogates, which JSON may contain, raise here.
        url.encode()
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            return None
    except ValueError:
        return None
    user, at, host = parts.netloc.rpartition("@")
    # Equal addresses must have equal hashes: hosts ignore case, and the default port is the same as none.
    host = host.lower().removesuffix(DEFAULT_PORTS[parts.scheme])
    return f"{parts.scheme}://{user}{at}{host}{url.partition('://')[2][len(parts.netloc) :]}"


def links_of_wat(record: Mapping[str, Any], on_bad: OnBad, *, unescape: bool = False) -> Iterator[Link]:
    """Yield the images with texts of a page from its record in a WAT file.

    A page with an error status has none.

    Args:
        record: Record as parsed JSON.
        on_bad: Called with (reason, where) for texts that cannot be used.
        unescape: Decode HTML entities. Common Crawl left them in its WAT files until August 2019.
    """
    page = field_of(record, TARGET)
    links = field_of(record, LINKS)
    if not isinstance(page, str) or not isinstance(links, list) or field_of(record, STATUS) not in (None, "200"):
        return
    decoded = html.unescape if unescape else str
    base = field_of(record, BASE)
    # A page may declare another base for its relative addresses.
    base = (isinstance(base, str) and resolve(page, base)) or page
    rights = rights_in_wat(record)
    rights = replace(rights, license=resolve(base, rights.license) if rights.license else None)
    for link in links:
        if isinstance(link, Mapping) and link.get("path") == IMAGE_PATH and isinstance(link.get("url"), str):
            texts = []
            for value in map(link.get, FIELDS):
                texts.append(decoded(value) if isinstance(value, str) else None)
            yield from _links(resolve(base, decoded(link["url"])), texts, rights, page, on_bad)


def links_of_page(
    body: bytes, page: str, charset: str | None, on_bad: OnBad, *, robots: str | None = None
) -> Iterator[Link]:
    """Yield the images with texts of an HTML page.

    Args:
        body: The page, without transfer or content encoding.
        page: URL of the page.
        charset: Encoding in the HTTP header. A byte order mark goes before it, as in browsers. Without both, the page's
            own declaration or its bytes decide.
        on_bad: Called with (reason, where) for texts that cannot be used.
        robots: The HTTP header `X-Robots-Tag`.
    """
    # The extra `crawl`.
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
    from resiliparse.parse.html import HTMLTree

    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if body.startswith(mark)), None)
    # Parsing is the cost of this pass, and many pages have no image.
    searched = body if encoding in (None, "utf-8") else body.replace(b"\0", b"")
    if not HAS_IMAGE.search(searched):
        return
    if encoding is None and charset:
        encoding = map_encoding_to_html5(charset, fallback_utf8=False)
    encoding = encoding or detect_encoding(body, from_html_meta=True) or "utf-8"
    document: Any = HTMLTree.parse_from_bytes(body, encoding).document
    first = document.query_selector("base[href]")
    base = (first and resolve(page, first.getattr("href"))) or page
    rights = rights_in_page(document, robots)
    rights = replace(rights, license=resolve(base, rights.license) if rights.license else None)
    for image in document.query_selector_all("img"):
        texts = [image.getattr(name) for name in FIELDS]
        if any(texts):
            urls = (resolve(base, address) for address in addresses(image.getattr))
            yield from _links(next(filter(None, urls), None), texts, rights, page, on_bad)


def _links(url: str | None, texts: list[str | None], rights: Rights, page: str, on_bad: OnBad) -> Iterator[Link]:
    if url is None:
        return
    for field, text in enumerate(texts):
        try:
            for cleaned in clean_captions(_BREAKS.sub(" ", text) if text else None, page):
                yield Link(url, field, cleaned, rights.noai, rights.license)
        except BadSample as bad:
            on_bad(bad.reason, bad.where)
