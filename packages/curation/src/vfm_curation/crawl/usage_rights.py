"""Read an opt-out of training and a licence from a page.

Sources: Google's `X-Robots-Tag` and robots meta tag, whose directives `noai` and `noimageai` DeviantArt introduced in
2022; the link relation `license`, RFC 4946.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    if isinstance(headers, Mapping):
        directives += [value for name, value in headers.items() if name.lower() == "x-robots-tag"]
    metas = _records(html, "Head.Metas")
    directives += [meta.get("content") for meta in metas if str(meta.get("name")).lower() == "robots"]
    links = [*_records(html, "Head.Link"), *_records(html, "Links")]
    licenses = [link.get("url") for link in links if "license" in str(link.get("rel")).lower().split()]
    named = [url for url in licenses if isinstance(url, str) and url]
    return Rights(opts_out(directives), named[0] if named else None)


def _records(html: object, place: str) -> list[Mapping[str, Any]]:
    listed = field_of(html, place) if isinstance(html, Mapping) else None
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def rights_in_page(document: Any, header: str | None) -> Rights:
    """Read the rights of an HTML page from its parsed document and its header `X-Robots-Tag`."""
    metas = [meta for meta in document.query_selector_all("meta[content]") if _attribute(meta, "name") == "robots"]
    directives = [header, *(meta.getattr("content") for meta in metas)]
    related = document.query_selector_all("[rel][href]")
    licenses = [link.getattr("href") for link in related if "license" in _attribute(link, "rel").split()]
    return Rights(opts_out(directives), next(filter(None, licenses), None))


def _attribute(element: Any, name: str) -> str:
    return (element.getattr(name) or "").lower()
