"""Entries from a list that the user has: text, JSON, csv or tsv, or WordNet's folder."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from vfm.config import UserError
from vfm_curation.metadata.wordnet import wordnet_entries


def read_entries(path: str | Path, *, column: str | None = None) -> dict[str, str]:
    """Entries of a file or a WordNet folder as entry -> source, in the file's order.

    Args:
        path: `.txt` (one entry a line), `.json` (a list of strings, as MetaCLIP's metadata.json), `.csv`, `.tsv`, or
            a folder with WordNet's `data.noun`, `data.verb`, `data.adj` and `data.adv`.
        column: of a csv or tsv with a header line; default: the first column of a file without one.

    Raises:
        UserError: the file is missing, of another kind, or not what its name says.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return wordnet_entries(path)
        found = list(_read_file(path, column))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as {path.suffix[1:]} in UTF-8: {error}") from None
    return dict.fromkeys(filter(None, found), path.name)


def _read_file(path: Path, column: str | None) -> Iterator[str]:
    if path.suffix == ".json":
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{path}: should hold a JSON list of strings")
        yield from entries
    elif path.suffix == ".txt":
        yield from re.split(r"\r?\n", path.read_text(encoding="utf-8"))
    elif path.suffix in (".csv", ".tsv"):
        yield from _read_table(path, column)
    else:
        raise UserError(f"{path}: metadata is read from .txt, .json, .csv, .tsv or a folder of WordNet files")


def _read_table(path: Path, column: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        place = 0
        if column is not None:
            header = next(rows, [])
            if column not in header:
                raise UserError(f"{path}: has no column {column!r}; its columns: {', '.join(header)}")
            place = header.index(column)
        for row in rows:
            yield row[place] if len(row) > place else ""
