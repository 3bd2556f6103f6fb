"""Derive the names of runs from the recipe's file name. One file in a store owns a name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from vfm.flow.recipe.shipped import shipped_files

MAX_BYTES = 200  # file systems allow 255, and a number is appended


def run_name(stem: str) -> str:
    """Convert a recipe's file name without suffix to a name of runs.

    It has letters and digits of any script, `_` and `-`. The name is in Unicode's form NFC, since some file systems
    decompose names and others do not. It does not begin with `-`, so that it cannot be mistaken for an option.
    """
    text = unicodedata.normalize("NFC", stem)
    name = re.sub("\0+", "-", "".join(char if _is_kept(char) else "\0" for char in text))
    return name.lstrip("-").encode()[:MAX_BYTES].decode(errors="ignore") or "recipe"


def _is_kept(char: str) -> bool:
    return char.isalnum() or char in "_-" or unicodedata.category(char).startswith("M")  # marks belong to letters


def owner_of(file: Path | None, name: str, store: Path) -> str:
    """Identify the recipe of a run.

    Args:
        file: File of the recipe, if it has one.
        name: Name of the recipe.
        store: Folder of the store. A path relative to it stays valid if a project is moved with its store.
    """
    if file is None:
        return f"<{name}>"
    file = file.resolve()
    shipped = shipped_files("recipes").get(file.stem)
    if shipped and file == shipped.resolve():
        return f"vfm:{file.stem}"
    return os.path.relpath(file, store.resolve())


def own_name(name: str, owner: str, taken: Iterable[tuple[str, str | None]]) -> str:
    """Choose the name of a recipe's runs.

    It is the name of its earlier runs, else the recipe's name, with a number if another recipe owns it.

    Args:
        name: Name of the recipe.
        owner: Identity of the recipe, from `owner_of`.
        taken: Name and owner of each run in the store. Any recipe may continue a run with an unknown owner (None).
    """
    owners: dict[str, set[str]] = {}
    for used, other in taken:
        if other == owner:
            return used
        # Some file systems do not distinguish `R` and `r`.
        named = owners.setdefault(used.casefold(), set())
        if other is not None:
            named.add(other)
    candidate = name
    number = 1
    while owners.get(candidate.casefold()):
        number += 1
        candidate = f"{name}-{number}"
    return candidate
