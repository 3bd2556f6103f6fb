"""Sections of `docs/results.md`, where every measured number is written once, for pages that show or link to them."""

from __future__ import annotations

import re

from documents import ROOT

PAGE = "docs/results.md"


def section_link(name: str) -> str | None:
    """Return a link from a generated page to the section of a recipe, `None` if it has none."""
    heading = next((heading for heading in _sections() if heading.split(",")[0].split(":")[0] == name), None)
    if heading is None:
        return None
    anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    return f"[{heading}](../{PAGE}#{anchor})"


def block(name: str, words: str) -> str:
    """Return the paragraph or table of a section that has a line beginning with some words.

    Raises:
        ValueError: the section has none, or several.
    """
    texts = [text for heading, text in _sections().items() if heading.split(",")[0].split(":")[0] == name]
    blocks = [block for text in texts for block in text.strip().split("\n\n")]
    found = [block for block in blocks if any(line.startswith(words) for line in block.splitlines())]
    if len(found) != 1:
        raise ValueError(
            f"{PAGE}: expected one block of {name!r} with a line that begins with {words!r}, got {len(found)}"
        )
    return found[0]


def _sections() -> dict[str, str]:
    """Return the texts of the sections by heading."""
    parts = re.split(r"^## (.+)$", (ROOT / PAGE).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
