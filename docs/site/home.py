"""Landing page: `home.md`, with numbers from the result tables and counts of the installed stages and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import command_pages
import results
from documents import ROOT

from vfm.flow.recipe.shipped import shipped_files
from vfm.interfaces import load_plugins, stage_types

FILE = Path(__file__).with_name("home.md")
NUMBERS = {  # pages of results, and what of their answers is shown in large
    "quickstart": r"\+[\d.]+ points",
    "metaclip_claim": r"\+[\d.]+ points",
    "eva_claim_pairs": r"\+[\d.]+ points",
    "kill_test": r"\d+ random kills",
}


def text() -> str:
    """Return the page's Markdown.

    Raises:
        ValueError: a result has no row or no longer the number.
    """
    rows = results.rows()
    values = {
        "tiles": "\n".join(_tiles(rows)),
        "questions": len(rows),
        "stages": len(stage_types(load_plugins())),
        "recipes": len(shipped_files("recipes")),
        "commands": len(list(command_pages.all_commands())),
        "status": _status(),
    }
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: str(values[found[1]]), FILE.read_text(encoding="utf-8"))


def _tiles(rows: dict[str, tuple[str, str]]) -> Iterator[str]:
    for name, pattern in NUMBERS.items():
        question, answer = rows.get(name, ("", ""))
        number = re.search(pattern, answer)
        if number is None:
            raise ValueError(f"results.md: expected {pattern!r} in the answer of {name}, got {answer!r}")
        link = f"[{name}](docs/results/{name}.md)"
        yield f"- **{number[0]}**\n\n    {question}\n\n    {answer}\n\n    {link}\n"


def _status() -> str:
    """Return what README says of the version."""
    found = re.search(r"(?:^> .*\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError("README.md: expected a quotation with the status")
    return found[0].strip()
