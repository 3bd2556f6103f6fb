"""Rows of csv and tsv tables, also where a stray quotation mark or a damaged line break has merged some."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from vfm.data.sample import BadSample
from vfm.data.webdataset import IMAGE_EXTENSIONS

MAX_LINE = 16 << 20  # characters; a longer line is not a row of a table, and would fill the memory
MAX_LINES = 1000  # lines of one row; more are swallowed by a quotation mark that is never closed


class _RawTabs(csv.excel_tab):
    """Tab-separated without quoting: such tables are mostly raw, and a caption may begin with a quotation mark."""

    quoting = csv.QUOTE_NONE


class _Semicolons(csv.excel):
    delimiter = ";"


def header_of(lines: Iterator[str], *, tabs: bool) -> tuple[type[csv.Dialect], list[str]]:
    """Read the first line, and return the table's dialect and its values; with `tabs` a tab stands between them."""
    first = next(lines, "")
    if tabs:
        return _RawTabs, next(csv.reader([first], _RawTabs), [])
    dialects: list[type[csv.Dialect]] = [csv.excel, _Semicolons, csv.excel_tab]
    split = [(dialect, next(csv.reader([first], dialect), [])) for dialect in dialects]
    return next((one for one in split if len(one[1]) > 1), split[0])


def delimited_rows(
    lines: Iterator[str], path: str, columns: list[str] | None, image_column: str | None, *, tabs: bool
) -> Iterator[dict[str, Any] | BadSample]:
    """Yield the rows, and a BadSample for each row that cannot be read.

    Args:
        lines: of the table.
        path: of the table, for bad rows.
        columns: column names of a table without a header.
        image_column: column of image paths, by which rows are found that a damaged byte has merged.
        tabs: the values stand between tabs, raw; otherwise between commas, semicolons or tabs, and may be quoted.
    """
    csv.field_size_limit(MAX_LINE)  # so that an overlong caption is one bad sample, and not an error of the table
    supply = _Lines(lines)
    dialect, header = header_of(supply, tabs=tabs)
    if columns:
        supply.unread(0)
        dialect = csv.excel if len(columns) == 1 and not tabs else dialect
    names = columns or header
    image = names.index(image_column) if image_column in names else None
    reader = csv.reader(supply, dialect)
    while True:
        supply.taken.clear()
        values = next(reader, None)
        if values is None:
            return
        if len(supply.taken) > 1 and _swallowed(supply.taken, dialect, len(names), image):
            supply.unread(1)  # only the first line is lost, the others are rows
            yield BadSample("unreadable_row", f"{path}: line {supply.number}")
        elif not columns and any(values[len(names) :]):
            # More values than columns: a line break or a quotation mark is damaged, and several rows may have merged.
            merged = sum(map(is_image, values)) if image is not None else 1
            for _ in range(max(1, merged)):
                yield BadSample("unreadable_row", f"{path}: line {supply.number}")
        elif values:
            yield dict(zip(names, values + [None] * (len(names) - len(values)), strict=False))


class _Lines:
    """Iterates over lines, remembers those of the current row, and can yield them again."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines = lines
        self.taken: list[str] = []
        self.again: list[str] = []  # in reverse order
        self.number = 0  # of the last line

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self.taken) >= MAX_LINES:
            raise StopIteration
        line = self.again.pop() if self.again else next(self.lines)
        self.taken.append(line)
        self.number += 1
        return line

    def unread(self, first: int) -> None:
        """Yield the lines of the current row again, beginning with the one of the number `first`."""
        self.again += reversed(self.taken[first:])
        self.number -= len(self.taken) - first
        del self.taken[first:]


def _swallowed(lines: list[str], dialect: type[csv.Dialect], num_columns: int, image: int | None) -> bool:
    """Return whether lines after the first are rows of their own, which a stray quotation mark has merged."""
    if len(lines) >= MAX_LINES:
        return True
    if image is None:
        return False
    parsed = (next(csv.reader([line], dialect), []) for line in lines[1:])
    return any(len(values) == num_columns and is_image(values[image]) for values in parsed)


def is_image(value: str) -> bool:
    """Return whether a value ends as the name of an image file."""
    return value.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
