"""Names of runs: that of the recipe's file in any script, and which file owns a name in a store."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from vfm.flow.recipe.shipped import shipped_files

MAX_BYTES = 200  # file systems allow 255, and a number follows


def run_name(stem: str) -> str:
    """Return a recipe's file name without suffix as a name of runs: letters and digits of any script, `_` and `-`.

    It is in Unicode's form NFC, since some file systems decompose what others keep. It begins with no `-`, as an option
    of a command does.
    """
    text = unicodedata.normalize("NFC", stem)
    kept = re.sub("\0+", "-", "".join(char if _is_kept(char) else "\0" for char in text))
    return kept.lstrip("-").encode()[:MAX_BYTES].decode(errors="ignore") or "recipe"


def _is_kept(char: str) -> bool:
    return char.isalnum() or char in "_-" or unicodedata.category(char).startswith("M")  # marks belong to letters


def owner_of(file: Path | None, name: str, store: Path) -> str:
    """Return what identifies the recipe of a run.

    Args:
        file: its file; None: the recipe has none.
        name: its name.
        store: folder of the store. A path from there stays true where a project is moved with its store.
    """
    if file is None:
        return f"<{name}>"
    file = file.resolve()
    shipped = shipped_files("recipes").get(file.stem)
    return f"vfm:{file.stem}" if shipped and file == shipped.resolve() else os.path.relpath(file, store.resolve())


def own_name(name: str, owner: str, taken: Iterable[tuple[str, str | None]]) -> str:
    """Return the name of a recipe's runs: that of its earlier runs, else its own, with a number if another owns it.

    Args:
        name: name of the recipe.
        owner: what identifies it.
        taken: name and owner of each kept run; None: its owner is not known, and anybody may go on with it.
    """
    owners: dict[str, set[str]] = {}
    for used, other in taken:
        if other == owner:
            return used
        # Some file systems take `R` and `r` for the same name.
        owners.setdefault(used.casefold(), set()).update([] if other is None else [other])
    candidates = (name if number == 1 else f"{name}-{number}" for number in range(1, len(owners) + 2))
    return next(candidate for candidate in candidates if not owners.get(candidate.casefold()))
