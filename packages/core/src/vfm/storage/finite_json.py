"""JSON with numbers that are not finite: NaN and Infinity, which Python writes, and 1e999, which is too large."""

from __future__ import annotations

import math
import re
from typing import IO

_TOKENS = re.compile(
    rb'"(?:[^"\\]|\\.)*"'  # a text, in which nothing is replaced
    rb'|(?P<open>"(?:[^"\\]|\\.)*\\?\Z)'  # a text that goes on in the next part
    rb"|(?P<no_number>-?(?:NaN|Infinity))"
    rb"|(?P<large>-?\d+(?:\.\d+)?[eE]\+?\d{3,})",
    re.DOTALL,
)
_LAST_WORD = re.compile(rb"[-+.\w]*\Z")


class FiniteJson:
    """A stream of JSON in which each number that is not finite is null, so that only its sample is bad."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.rest = b""  # the end of the last part, which may be half of a text or number

    def read(self, size: int = -1) -> bytes:
        """Read about `size` bytes. Empty only at the end."""
        while True:
            part = self.file.read(size)
            data, self.rest = self.rest + part, b""
            if part and size:
                data = self._without_half(data)
            if data or not part:
                return _TOKENS.sub(_replaced, data)

    def _without_half(self, data: bytes) -> bytes:
        """Keep the text or number at the end, which may go on, for the next part."""
        starts = [token.start() for token in _TOKENS.finditer(data) if token["open"] is not None]
        last = _LAST_WORD.search(data)
        end = starts[0] if starts else last.start() if last else len(data)
        self.rest = data[end:]
        return data[:end]


def _replaced(token: re.Match[bytes]) -> bytes:
    text = token[0]
    if token["no_number"] is not None or (token["large"] is not None and math.isinf(float(text))):
        return b"null"
    return text
