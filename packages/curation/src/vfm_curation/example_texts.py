"""Texts as panels show them."""

from __future__ import annotations

LONGEST = 120  # characters of an example


def shortened(text: str) -> str:
    """The text, cut with dots where it is too long to show."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
