"""Read the user's lists of entries from text, JSON, csv or tsv, or from a folder."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfm.plugin import UserError
from vfm_curation.metadata.entries import SHARED
from vfm_curation.metadata.wordnet import WORDNET_FILES, wordnet_entries

# The names of sources in MetaCLIP 2's lists.
TAGS = {"": "number", "w": "wordnet", "u": "wikipedia unigram", "b": "wikipedia bigram", "t": "wikipedia title"}


def read_entries(path: str | Path, *, column: str | None = None) -> dict[str, str]:
    """Read the entries of a file for any language, or of a WordNet folder, as entry -> source, in order.

    Args:
        path: As for `read_lists`.
        column: As for `read_lists`.

    Raises:
        UserError: If the file is missing, is not in a supported format, does not fit its suffix, or has lists by
            language.
    """
    lists = read_lists(path, column=column)
    if set(lists) - {SHARED}:
        raise UserError(f"{path}: has a list for each of {', '.join(lists)}; use `read_lists`")
    return lists.get(SHARED, {})


def read_lists(path: str | Path, *, column: str | None = None, language: str = SHARED) -> dict[str, dict[str, str]]:
    """Read lists of entries by language, each as entry -> source, in the file's order, without empty lines.

    Args:
        path: `.txt` (one entry a line), `.csv`, `.tsv` or `.json`, or a folder. JSON holds a list of strings like
            MetaCLIP's metadata.json, a mapping of entries to sources like MetaCLIP 2's, or a mapping of languages to
            either. A folder is WordNet's, with `data.noun`, `data.verb`, `data.adj` and `data.adv`, or has files named
            `LANGUAGE.json`.
        column: Column of a csv or tsv with a header. The default is the first column of a file without a header.
        language: Language of the entries of a file that has no languages.

    Raises:
        UserError: If the file is missing, is not in a supported format, or does not fit its suffix.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, language)
    try:
        if path.suffix == ".json":
            lists = _read_json(path, language)
        else:
            lists = {language: dict.fromkeys(_read_lines(path, column), path.name)}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file") from None
    except UserError:
        raise
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: not readable as {path.suffix[1:]} in UTF-8: {error}") from None
    for entries in lists.values():
        entries.pop("", None)
    return lists


def _read_folder(folder: Path, language: str) -> dict[str, dict[str, str]]:
    files = sorted(folder.glob("*.json"))
    if not files or (folder / WORDNET_FILES[0]).exists():
        return {language: wordnet_entries(folder)}
    lists: dict[str, dict[str, str]] = {}
    for file in files:
        lists |= read_lists(file, language=file.stem)
    return lists


def _read_json(path: Path, language: str) -> dict[str, dict[str, str]]:
    # Files from Windows may begin with a byte order mark.
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    entries = _entries_of(content, path.name)
    if entries is not None:
        return {language: entries}
    candidates = content.items() if isinstance(content, dict) else []
    lists = {key: _entries_of(value, path.name) for key, value in candidates}
    valid_lists = {key: entries for key, entries in lists.items() if entries is not None}
    if not valid_lists or len(valid_lists) < len(lists):
        raise UserError(
            f"{path}: expected a JSON list of strings, a mapping of entries to sources, or of languages to either"
        )
    return valid_lists


def _entries_of(content: Any, name: str) -> dict[str, str] | None:
    """Convert a list of strings, or a mapping of entries to sources, to entry -> source.

    Other contents give None.
    """
    if isinstance(content, list) and all(isinstance(entry, str) for entry in content):
        return dict.fromkeys(content, name)
    if not isinstance(content, dict) or not content:
        return None
    sources = {}
    for entry, source in content.items():
        if not isinstance(source, str):
            return None
        sources[entry] = TAGS.get(source, source)
    return sources


def _read_lines(path: Path, column: str | None) -> Iterator[str]:
    if path.suffix == ".txt":
        yield from re.split(r"\r?\n", path.read_text(encoding="utf-8-sig"))
    elif path.suffix in (".csv", ".tsv"):
        yield from _read_table(path, column)
    else:
        raise UserError(f"{path}: expected a .txt, .json, .csv or .tsv file, or a folder of WordNet files")


def _read_table(path: Path, column: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        index = 0
        if column is not None:
            header = next(rows, [])
            if column not in header:
                raise UserError(f"{path}: has no column {column!r}; choose from {', '.join(header)}")
            index = header.index(column)
        for row in rows:
            yield row[index] if len(row) > index else ""
