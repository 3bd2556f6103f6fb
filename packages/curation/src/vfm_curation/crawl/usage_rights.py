"""Read an opt-out of training and a licence from a page.

Sources: Google's `X-Robots-Tag` and robots meta tag, whose directives `noai` and `noimageai` DeviantArt introduced in
2022; the link relation `license`, RFC 4946.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from vfm.data import field_of

OPT_OUT = frozenset({"noai", "noimageai"})
_RESPONSE = "Envelope.Payload-Metadata.HTTP-Response-Metadata"
_WORDS = re.compile(r"[a-z-]+")


@dataclass(frozen=True)
class Rights:
    """What a page says.

    Attributes:
        noai: Whether it opts out of training, by its header or a meta tag.
        license: Address of its licence as written, the first one.
    """

    noai: bool = False
    license: str | None = None


def opts_out(directives: Iterable[object]) -> bool:
    """Check the values of headers or meta tags for an opt-out.

    Examples are `noindex, noai` and `somebot: noimageai`.
    """
    texts = [value.lower() for value in directives if isinstance(value, str)]
    return any(not OPT_OUT.isdisjoint(_WORDS.findall(text)) for text in texts)


def rights_in_wat(record: Mapping[str, Any]) -> Rights:
    """Read the rights of a page from its record in a WAT file."""
    headers = field_of(record, f"{_RESPONSE}.Headers")
    html = field_of(record, f"{_RESPONSE}.HTML-Metadata")
    directives = []
    for name, value in headers.items() if isinstance(headers, Mapping) else ():
        if name.lower() == "x-robots-tag":
            directives.append(value)
    for meta in _records(html, "Head.Metas"):
        if str(meta.get("name")).lower() == "robots":
            directives.append(meta.get("content"))
    license_url = None
    for link in chain(_records(html, "Head.Link"), _records(html, "Links")):
        url = link.get("url")
        if "license" in str(link.get("rel")).lower().split() and isinstance(url, str) and url:
            license_url = url
            break
    return Rights(opts_out(directives), license_url)


def _records(html: object, place: str) -> list[Mapping[str, Any]]:
    listed = field_of(html, place) if isinstance(html, Mapping) else None
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def rights_in_page(document: Any, header: str | None) -> Rights:
    """Read the rights of an HTML page from its parsed document and its header `X-Robots-Tag`."""
    directives = [header]
    for meta in document.query_selector_all("meta[content]"):
        if _attribute(meta, "name") == "robots":
            directives.append(meta.getattr("content"))
    license_url = None
    for link in document.query_selector_all("[rel][href]"):
        if "license" in _attribute(link, "rel").split() and link.getattr("href"):
            license_url = link.getattr("href")
            break
    return Rights(opts_out(directives), license_url)


def _attribute(element: Any, name: str) -> str:
    return (element.getattr(name) or "").lower()
