"""The address of the picture that an `img` element shows, also where a script puts it in place of a placeholder.

Pages that load pictures late have no `src`, an inline image or a file such as `blank.gif` there, and the address in
`data-src` or in a list of sizes (`srcset`). Only pages can be read so: WAT files contain `src`, `alt` and `title`.

Source: the HTML standard, "Parsing a srcset attribute".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

LATE = ("data-src", "data-original", "data-lazy-src")
SIZES = ("srcset", "data-srcset", "data-lazy-srcset")
_EMPTY = "blank|spacer|transparent|placeholder|pixel|loading|loader|lazy|lazyload|dummy|empty|clear|1x1"
_BESIDE = r"image|img|photo|gif|load|grey|gray|white|black|default|small|large|\d+|\d+x\d+"
_PLACEHOLDER = re.compile(rf"(?=.*\b(?:{_EMPTY})\b)(?:(?:{_EMPTY}|{_BESIDE})\b\W*)+")
_ADDRESS, _SIZE = re.compile(r"[\s,]*(\S+)"), re.compile(r"(\d+(?:\.\d+)?)[wx]")


def addresses(attribute: Callable[[str], str | None]) -> Iterator[str]:
    """Yield the addresses of an `img` element, that of its picture first. The first that is a web address counts.

    Args:
        attribute: returns the value of an attribute, None if the element does not have it.
    """
    src = attribute("src")
    if src and not is_placeholder(src):
        yield src
    yield from filter(None, map(attribute, LATE))
    for name in SIZES:
        if largest := largest_size(attribute(name) or ""):
            yield largest
    if src:
        yield src


def is_placeholder(src: str) -> bool:
    """Return whether the name of a file says that it is not the picture: `blank.gif`, `img/1x1-transparent.png`."""
    name = re.split("[?#]", src.strip())[0].rpartition("/")[2].partition(".")[0].lower()
    return bool(_PLACEHOLDER.fullmatch(name.replace("_", "-")))


def largest_size(srcset: str) -> str | None:
    """Return the address with the largest width or density of a `srcset`, the first of equal ones; None if empty."""
    found = list(_candidates(srcset))
    return max(found, key=lambda one: one[0])[1] if found else None


def _candidates(srcset: str) -> Iterator[tuple[float, str]]:
    """Yield the (width or density, address) of each candidate. An address may contain commas, but not end in one."""
    place = 0
    while found := _ADDRESS.match(srcset, place):
        address, place = found[1], found.end()
        size = None
        if not address.endswith(","):  # else it has no descriptor
            start, place = place, srcset.find(",", place) + 1 or len(srcset)
            size = _SIZE.search(srcset, start, place)
        if address := address.rstrip(","):
            yield float(size[1]) if size else 1.0, address
