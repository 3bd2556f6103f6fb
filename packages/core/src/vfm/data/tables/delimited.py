"""Read rows of csv and tsv tables, even if a stray quotation mark or a damaged line break has merged some of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import BadSample

MAX_LINE = 16 << 20  # characters. A longer line is not a row of a table, and would fill the memory
MAX_LINES = 1000  # lines of a row. More lines mean that a quotation mark is never closed


SEPARATOR = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # first line by which Excel declares the separator


class _RawTabs(csv.excel_tab):
    """Tab-separated values without quoting.

    Such tables are mostly raw, and a caption may begin with a quotation mark.
    """

    quoting = csv.QUOTE_NONE


def header_of(lines: Iterator[str], *, tabs: bool) -> tuple[type[csv.Dialect], list[str]]:
    """Find the table's dialect, and read its header from the first line that is not blank.

    Args:
        lines: Lines of the table. After Excel's line `sep=;`, the next line is the header.
        tabs: Whether the values are separated by tabs.
    """
    first = _next_line(lines)
    if tabs:
        return _RawTabs, list(map(unquoted, next(csv.reader([first], _RawTabs), [])))
    declared = SEPARATOR.fullmatch(first)
    if declared:
        dialect = _separated(declared[1])
        return dialect, next(csv.reader([_next_line(lines)], dialect), [])
    dialects: list[type[csv.Dialect]] = [csv.excel, _separated(";"), csv.excel_tab]
    for dialect in dialects:
        header = next(csv.reader([first], dialect), [])
        if len(header) > 1:
            return dialect, header
    return csv.excel, next(csv.reader([first], csv.excel), [])


def _next_line(lines: Iterator[str]) -> str:
    return next(filter(str.strip, lines), "")


def _separated(mark: str) -> type[csv.Dialect]:
    return type("Separated", (csv.excel,), {"delimiter": mark})


def unquoted(value: str) -> str:
    """Remove CSV quoting from a value of a raw table. pandas and Excel quote some values.

    A value is quoted if it begins and ends with a quotation mark, and quotation marks inside are doubled.
    """
    inside = value[1:-1]
    quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if quoted else value


def delimited_rows(
    lines: Iterator[str], path: str, columns: list[str] | None, image_column: str | None, *, tabs: bool
) -> Iterator[tuple[int, int, dict[str, Any] | BadSample | str]]:
    """Yield the rows of a table, each after its range of lines.

    An unreadable row is a BadSample. Other lines are `header` or `blank`.

    Args:
        lines: Lines of the table.
        path: Path of the table, for bad rows.
        columns: Column names of a table without a header.
        image_column: Column of image paths. It helps to find rows that a damaged byte has merged.
        tabs: Whether the values are separated by tabs, each raw or quoted (`unquoted`, `_quoted_values`). Otherwise
            they are separated by commas, semicolons or tabs, and may be quoted.
    """
    csv.field_size_limit(MAX_LINE)  # so that an overlong caption is a bad sample, and not an error of the table
    supply = _Lines(lines)
    dialect, header = header_of(supply, tabs=tabs)
    if columns:
        supply.unread(len(supply.taken) - 1)  # without a header, the line that was read is the first row
        yield 0, supply.number, "blank"
        dialect = csv.excel if len(columns) == 1 and not tabs else dialect
    else:
        yield 0, supply.number, "header"
    names = columns or header
    image = names.index(image_column) if image_column in names else None
    reader = csv.reader(supply, dialect)
    while True:
        start = supply.number
        supply.taken.clear()
        values = next(reader, None)
        if values is None:
            if supply.number > start:
                yield start, supply.number, "blank"
            return
        if tabs:
            values = _quoted_values(supply, values, len(names), image) or list(map(unquoted, values))
        elif len(supply.taken) > 1 and _swallowed(supply.taken, dialect, len(names), image):
            supply.unread(1)  # only the first line is lost, the other lines are rows
            yield start, supply.number, BadSample("unreadable_row", f"{path}: line {supply.number}")
            continue
        if not columns and any(values[len(names) :]):
            # More values than columns: a line break or a quotation mark is damaged, and several rows may have merged.
            merged = sum(map(is_image, values)) if image is not None else 1
            for _ in range(max(1, merged)):
                yield start, supply.number, BadSample("unreadable_row", f"{path}: line {supply.number}")
                start = supply.number
        elif values:
            row = dict(zip(names, values + [None] * (len(names) - len(values)), strict=False))
            yield start, supply.number, row
        else:
            yield start, supply.number, "blank"


class _Lines:
    """Iterates over lines, remembers the lines of the current row, and can yield them again."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines = lines
        self.taken: list[str] = []
        self.again: list[str] = []  # in reverse order
        self.number = 0  # number of the last line

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
        """Yield the lines of the current row again, from number `first` on."""
        self.again += reversed(self.taken[first:])
        self.number -= len(self.taken) - first
        del self.taken[first:]


def _quoted_values(supply: _Lines, raw: list[str], num_columns: int, image: int | None) -> list[str] | None:
    """Read a row between tabs in which a quoted value has tabs or line breaks, as pandas and csv.writer write it.

    In a raw table a caption may begin with a stray quotation mark. Therefore no line after the first may be a row, and
    the row must have a value for each column.

    Args:
        supply: Lines of the table. The first line of the row was taken.
        raw: Values of that line, without quoting.
        num_columns: Number of columns.
        image: Number of the column of image paths, if known.

    Returns:
        The values, or None if the first line is a raw row. The lines after it are then still to be read.
    """
    num_marks = supply.taken[0].count('"')
    if not num_marks:  # most lines
        return None
    complete = len(raw) == num_columns
    is_open = num_marks % 2 == 1
    if (complete and not is_open) or not any(value[:1] == '"' and unquoted(value) == value for value in raw):
        return None
    shows_paths = image is not None and image < len(raw) and is_image(unquoted(raw[image]))
    while is_open and (line := next(supply, None)) is not None:
        closes = line.count('"') % 2 == 1
        values = line.rstrip("\r\n").split("\t")
        is_row = len(values) == num_columns and not (shows_paths and not is_image(unquoted(values[image or 0])))
        if is_row and (complete or shows_paths or not closes):
            break
        is_open = not closes
    rows = []
    if not is_open:
        with suppress(csv.Error):
            rows = list(csv.reader(supply.taken, csv.excel_tab, strict=True))
    if len(rows) == 1 and len(rows[0]) == num_columns:
        return rows[0]
    supply.unread(1)
    return None


def _swallowed(lines: list[str], dialect: type[csv.Dialect], num_columns: int, image: int | None) -> bool:
    """Check whether the lines after the first are separate rows that a stray quotation mark has merged."""
    if len(lines) >= MAX_LINES:
        return True
    if image is None:
        return False
    for line in lines[1:]:
        values = next(csv.reader([line], dialect), [])
        if len(values) == num_columns and is_image(values[image]):
            return True
    return False


def is_image(value: str) -> bool:
    """Check whether a value ends like the name of an image file."""
    return value.rsplit(".", 1)[-1].lower() in IMAGE_EXTENSIONS
