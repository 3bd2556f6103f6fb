"""Read JSON with numbers that are not finite or too large, such as NaN, Infinity, 1e999 and 2**70."""

from __future__ import annotations

import math
import re
from typing import IO

_TOKENS = re.compile(
    rb'"(?:[^"\\]|\\.)*"'  # a text, in which nothing is replaced
    rb'|(?P<open>"(?:[^"\\]|\\.)*\\?\Z)'  # a text that goes on in the next part
    rb"|(?P<no_number>-?(?:NaN|Infinity))"
    rb"|(?P<large>-?\d+(?:\.\d+)?[eE]\+?\d{3,})"
    rb"|(?<![\w.+-])(?P<long>-?\d{19,})(?![\w.])",
    re.DOTALL,
)
MAX_DIGITS = 20  # of an integer of 64 bits, with its sign
_LAST_WORD = re.compile(rb"[-+.\w]*\Z")


class FiniteJson:
    """A stream of JSON in which each number that is not finite, or has over 64 bits, is null.

    So only its sample is bad, and not the file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.rest = b""  # the end of the last part, which may be half of a text or number

    def read(self, size: int = -1) -> bytes:
        """Read about `size` bytes. Empty only at the end."""
        while True:
            part = self.file.read(size)
            data = self.rest + part
            self.rest = b""
            if part and size:
                data = self._without_half(data)
            if data or not part:
                return _TOKENS.sub(_replaced, data)

    def _without_half(self, data: bytes) -> bytes:
        """Keep the text or number at the end for the next part, where it may continue."""
        last = _LAST_WORD.search(data)
        # An open text ends the part. Otherwise the last word may be half of a number or of a name.
        end = last.start() if last else len(data)
        for token in _TOKENS.finditer(data):
            if token["open"] is not None:
                end = token.start()
                break
        self.rest = data[end:]
        return data[:end]


def _replaced(token: re.Match[bytes]) -> bytes:
    text = token[0]
    if token["no_number"] is not None or (token["large"] is not None and math.isinf(float(text))):
        return b"null"
    if token["long"] is not None and (len(text) > MAX_DIGITS or not -(2**63) <= int(text) < 2**63):
        return b"null"
    return text
