r"""Control and bidirectional characters, written as escapes wherever text of a user's data is shown.

A file name or caption can hold them. Raw, they move a terminal's cursor, rename its window or reverse what is read.
"""

from __future__ import annotations

import re

# C0 without tab and newline, C1, marks and overrides of direction, line and paragraph separators, half surrogates.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return the text with control and bidirectional characters as escapes: `\x1b`, `\u202e`.

    Tabs and newlines stay, and so do the joiners of Persian, of Indic scripts and of emoji.
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def escaped_json(text: str) -> str:
    r"""Return JSON with the same characters as escapes of JSON (`\u202e`), so that what it says stays the same."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
