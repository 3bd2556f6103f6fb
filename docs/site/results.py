"""The pages of `docs/results/`, where every measured number is written once, for pages that show or link to them."""

from __future__ import annotations

import re
from pathlib import Path

from documents import ROOT

FOLDER = Path("docs/results")


def page_link(name: str) -> str | None:
    """Return a link from a generated page to the results of a recipe, `None` if it has none."""
    file = FOLDER / f"{name}.md"
    if not (ROOT / file).is_file():
        return None
    heading = (ROOT / file).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    return f"[{heading}](../{file.as_posix()})"


def block(name: str, words: str) -> str:
    """Return the paragraph or table of a page that has a line beginning with some words.

    Raises:
        ValueError: the page has none, or several.
    """
    blocks = (ROOT / FOLDER / f"{name}.md").read_text(encoding="utf-8").strip().split("\n\n")
    found = [block for block in blocks if any(line.startswith(words) for line in block.splitlines())]
    if len(found) != 1:
        raise ValueError(f"{name}.md: expected one block with a line that begins with {words!r}, got {len(found)}")
    return found[0]


def rows() -> dict[str, tuple[str, str]]:
    """Return the question and the answer of each row of the list of results, by the name of its page."""
    text = (ROOT / FOLDER.with_suffix(".md")).read_text(encoding="utf-8")
    found = re.findall(r"^\| (.+?) \| (.+?) \| .*\]\(results/(\w+)\.md\) \|$", text, re.MULTILINE)
    return {name: (question, answer) for question, answer, name in found}
