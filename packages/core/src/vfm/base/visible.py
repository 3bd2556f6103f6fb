r"""Control and bidirectional characters, shown as escapes in all output that contains user data.

File names and captions can hold them. Unescaped, they move a terminal's cursor, rename its window or reverse text.
"""

from __future__ import annotations

import re

# C0 without tab and newline, C1, direction marks and overrides, line and paragraph separators, unpaired surrogates.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Escape control and bidirectional characters, such as `\x1b` and `\u202e`.

    Tabs and newlines stay, as do the joiners of Persian, Indic scripts and emoji.
    """
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)


def escaped_json(text: str) -> str:
    r"""Replace the same characters in JSON text by JSON escapes (`\u202e`). This does not change its value."""
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
