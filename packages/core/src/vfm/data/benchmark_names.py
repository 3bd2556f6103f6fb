"""Class names and prompt templates of known data sets, out of the package clip_benchmark; none of its code is run."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vfm.config import UserError, did_you_mean
from vfm.data.templates import check_templates

PACKAGE = "clip_benchmark"
DEFAULT_TEMPLATES = "imagenet1k"  # what its own command takes where it lists none for a data set


def names_and_templates(name: str) -> tuple[list[str], list[str]]:
    """Class names (none where the package leaves them to the data set) and templates of a data set.

    Args:
        name: as clip_benchmark calls it, with a language behind a slash perhaps: `mnist`, `imagenet1k/ar`.

    Raises:
        UserError: it lists neither.
        ModuleNotFoundError: the package is not installed.
    """
    name, language = _named(name)
    names, templates = (_table(file) for file in _files(language))
    short = name.rpartition("/")[2]
    if short not in names and short not in templates:
        raise UserError(f"{PACKAGE} lists no data set {name!r}{did_you_mean(short, [*names, *templates])}")
    found = names.get(short, [])
    return [str(one) for one in found], check_templates(templates.get(short, templates[DEFAULT_TEMPLATES]), name)


def list_files(name: str) -> list[str]:
    """The package's files that `names_and_templates` reads for a data set."""
    return [str(file) for file in _files(_named(name)[1]) if file.is_file()]


def _named(name: str) -> tuple[str, str]:
    """The data set and the language of a name."""
    rest, _, last = name.rpartition("/")
    return (rest, last) if rest and _files(last)[1].is_file() else (name, "en")


def _files(language: str) -> tuple[Path, Path]:
    """The lists of class names and of templates in a language."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    folder = Path(found.submodule_search_locations[0]) / "datasets"
    return folder / f"{language}_classnames.json", folder / f"{language}_zeroshot_classification_templates.json"


def _table(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
