"""Plain text in Markdown."""

from __future__ import annotations

import re

SPECIAL = {"*": r"\*", "|": r"\|", "<": "&lt;"}
CODE = re.compile(r"(`[^`]*`)")


def escaped(text: str) -> str:
    """Return a text in which only what is between backticks has a meaning, as in comments and descriptions."""
    parts = CODE.split(text)
    return "".join(part if part.startswith("`") else part.translate(str.maketrans(SPECIAL)) for part in parts)
