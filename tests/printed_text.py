"""Compare printed text with the text that is committed: words exactly, numbers within a tolerance."""

from __future__ import annotations

import html
import math
import re
from itertools import zip_longest
from typing import Any

# Numbers with a decimal point come from trainings, which another processor ends with other bits. Counts are exact.
TOLERANCE = 0.02  # absolute below 1, relative above
NUMBER = re.compile(r"(?<![\w.@])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])")
NUMBER_OF_RUN = re.compile(r"@\d+ in \d+ s\b")  # in a title, with its seconds
TAGS = re.compile(r"<[^>]*>")


def printed(cell: Any) -> str:
    """Join the text of a cell's outputs, without images. A result whose text is only a title is read from its HTML."""
    texts = [output.get("text") or _of_formats(output.get("data", {})) for output in cell.outputs]
    return NUMBER_OF_RUN.sub("", "\n".join(texts))


def _of_formats(data: Any) -> str:
    plain: str = data.get("text/plain", "")
    if plain.startswith("<") and "text/html" in data:
        return html.unescape(TAGS.sub(" ", data["text/html"]))
    return plain


def differences(committed: str, shown: str) -> list[str]:
    """List where two texts differ, `committed -> shown`."""
    words = zip_longest(_words(committed), _words(shown), fillvalue="(nothing)")
    different = [f"{old} -> {new}" for old, new in words if old != new]
    numbers = zip_longest(NUMBER.findall(committed), NUMBER.findall(shown), fillvalue="(nothing)")
    return different + [f"{old} -> {new}" for old, new in numbers if not _agree(old, new)]


def _words(text: str) -> list[str]:
    return NUMBER.sub("#", text).split()


def _agree(old: str, new: str) -> bool:
    if "." not in old or "." not in new:
        return old == new
    return math.isclose(_value(old), _value(new), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _value(number: str) -> float:
    return float(number.replace(",", ""))
