"""Find the address of the image that an `img` element shows, also where a script inserts it for a placeholder.

Pages that load images late have no `src`, or it is an inline image or a file such as `blank.gif`. The address is then
in `data-src` or in a list of sizes (`srcset`). This works only for pages: WAT files contain `src`, `alt` and `title`.

Source: the HTML standard, "Parsing a srcset attribute".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

LATE = ("data-src", "data-original", "data-lazy-src")
SIZES = ("srcset", "data-srcset", "data-lazy-srcset")
_EMPTY = "blank|spacer|transparent|placeholder|pixel|loading|loader|lazy|lazyload|dummy|empty|clear|1x1"
_NEXT_TO_EMPTY = r"image|img|photo|gif|load|grey|gray|white|black|default|small|large|\d+|\d+x\d+"
_PLACEHOLDER = re.compile(rf"(?=.*\b(?:{_EMPTY})\b)(?:(?:{_EMPTY}|{_NEXT_TO_EMPTY})\b\W*)+")
_ADDRESS = re.compile(r"[\s,]*(\S+)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)[wx]")


def addresses(attribute: Callable[[str], str | None]) -> Iterator[str]:
    """Yield the addresses of an `img` element, best first.

    The caller takes the first that is a web address.

    Args:
        attribute: Looks up the value of an attribute. Missing attributes have None.
    """
    src = attribute("src")
    if src and not is_placeholder(src):
        yield src
    # Sites that load images late keep the real address here.
    yield from filter(None, map(attribute, LATE))
    for name in SIZES:
        largest = largest_size(attribute(name) or "")
        if largest:
            yield largest
    if src:
        yield src


def is_placeholder(src: str) -> bool:
    """Check whether a file's name shows that it is a placeholder, as in `blank.gif` or `img/1x1-transparent.png`."""
    name = re.split("[?#]", src.strip())[0].rsplit("/", 1)[-1].split(".", 1)[0].lower()
    return bool(_PLACEHOLDER.fullmatch(name.replace("_", "-")))


def largest_size(srcset: str) -> str | None:
    """Find the first address with the largest width or density of a `srcset`.

    An empty `srcset` gives None.
    """
    candidates = list(_candidates(srcset))
    if not candidates:
        return None
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _candidates(srcset: str) -> Iterator[tuple[float, str]]:
    """Yield the (width or density, address) of each candidate. An address may contain commas, but not end in one."""
    position = 0
    while match := _ADDRESS.match(srcset, position):
        address = match[1]
        position = match.end()
        size = None
        if not address.endswith(","):  # else it has no descriptor
            start = position
            position = srcset.find(",", position) + 1 or len(srcset)
            size = _SIZE.search(srcset, start, position)
        address = address.rstrip(",")
        if address:
            yield float(size[1]) if size else 1.0, address
