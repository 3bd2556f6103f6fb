"""The pages on papers: what is in `papers/`, with results drawn from `docs/results/`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import results

FOLDER = Path(__file__).parent / "papers"
INDEX = "papers/index.md"
METHODS = ("metaclip", "eva", "clip", "diva")
DRAWN = re.compile(r"^\{\{ (\w+): (.+) \}\}$", re.MULTILINE)  # {{ PAGE: first words of a line of a block }}
BLOCKS = re.compile(r"(?:^\{\{ .+ \}\}\n+)+", re.MULTILINE)  # one quotation


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each page, the list first."""
    for name in ("index", *METHODS):
        text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
        yield f"papers/{name}.md", BLOCKS.sub(_quotation, text)


def _quotation(found: re.Match[str]) -> str:
    """Return the blocks of results that some lines name, and links to their pages, as a quotation."""
    drawn = DRAWN.findall(found[0])
    blocks = [results.block(name, words) for name, words in drawn]
    links = [str(results.page_link(name)) for name in dict.fromkeys(name for name, _ in drawn)]
    quoted = "\n\n".join([*blocks, "Results: " + ", ".join(links)])
    return "\n".join(f"> {line}" for line in quoted.splitlines()) + "\n\n"
