"""Results of the functions of `vfm` as Arrow tables, for texts, notebooks and pandas."""

from __future__ import annotations

import html
import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from vfm.base import TerminalConsole, UserError, visible
from vfm.flow.listeners.listeners import number

MAX_ROWS = 20  # rows displayed; the table has all
WIDTH = 120  # characters per line outside a terminal
MAX_CELL = 80  # characters displayed of a cell
STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"


class Results(ABC):
    """Rows with named columns.

    `table()` returns an Arrow table, `to_pandas()` a data frame, and `show()` prints the results. Notebooks render
    them.
    """

    @property
    @abstractmethod
    def title(self) -> str:
        """One line about the results."""

    @abstractmethod
    def table(self) -> Any:
        """Build a `pyarrow.Table` of the rows."""

    def preview(self) -> Any:
        """Select the part of the table to display. Only its first rows are displayed."""
        return self.table()

    def drawing(self) -> str:
        """Draw an SVG element that a notebook shows above the table; empty: none."""
        return ""

    def to_pandas(self) -> Any:
        """Convert the rows to a `pandas.DataFrame`.

        Raises:
            UserError: If pandas is not installed.
        """
        if not find_spec("pandas"):
            raise UserError("to_pandas needs pandas: pip install pandas; table() returns an Arrow table without it")
        return self.table().to_pandas()

    def show(self) -> None:
        """Print the results."""
        console = TerminalConsole(width=None if sys.stdout.isatty() else WIDTH)
        for table in self.shown():
            console.print(table)

    def shown(self) -> Iterable[Table]:
        """Build the tables that `show` prints: by default the first rows."""
        data = self.preview()
        table = Table(title=visible(escape(self.title)), title_justify="left", caption_justify="left")
        for name, kind in zip(data.column_names, data.schema.types, strict=True):
            justify: Literal["left", "right"] = "right" if _is_number(kind) else "left"
            table.add_column(escape(visible(name)), justify=justify, overflow="fold")
        for row in data.slice(0, MAX_ROWS).to_pylist():
            table.add_row(*map(escape, map(_cell, row.values())))
        table.caption = _rest(len(data))
        return [table]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {visible(self.title)}>"

    def __str__(self) -> str:
        # In a notebook, a default console would draw into the cell, and leave the text empty.
        console = TerminalConsole(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
        for table in self.shown():
            console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        data = self.preview()
        sides = ["right" if _is_number(kind) else "left" for kind in data.schema.types]
        heads = _html_row("th", data.column_names, sides)
        rows = ""
        for row in data.slice(0, MAX_ROWS).to_pylist():
            rows += _html_row("td", list(map(_cell, row.values())), sides)
        rest = _rest(len(data))
        footer = f"<p>{rest}</p>" if rest else ""
        return (
            f"<p><b>{html.escape(visible(self.title))}</b></p>{self.drawing()}"
            f'<table style="{STYLE}"><thead>{heads}</thead><tbody>{rows}</tbody></table>'
            f"{footer}"
        )


def skipped_note(skipped: Mapping[str, int]) -> str:
    """Format the number of skipped samples by reason, to append to a title.

    The text is empty if none were skipped.
    """
    if not skipped:
        return ""
    return f"; skipped: {', '.join(f'{count} {reason}' for reason, count in skipped.items())}"


def as_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, pa.DataType]) -> Any:
    """Build an Arrow table with the columns of all rows, or with the given columns if there are no rows."""
    names: dict[str, None] = {}  # ordered
    for row in rows:
        names |= dict.fromkeys(row)
    arrays = {}
    for name in names or columns:
        arrays[name] = pa.array([row.get(name) for row in rows], columns.get(name))
    return pa.table(arrays)


def _html_row(tag: str, texts: Sequence[str], sides: Sequence[str]) -> str:
    cells = ""
    for text, side in zip(texts, sides, strict=True):
        cells += f'<{tag} style="text-align:{side};padding:0 0.6em">{html.escape(visible(text))}</{tag}>'
    return f"<tr>{cells}</tr>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        text = ", ".join(map(number, value[:4])) + (", ..." if len(value) > 4 else "")
    else:
        text = visible(number(value))
    if len(text) <= MAX_CELL:
        return text
    return f"{text[: MAX_CELL - 3]}..."


def _is_number(kind: object) -> bool:
    return str(kind) in ("int64", "float", "double", "int32")


def _rest(count: int) -> str:
    if count > MAX_ROWS:
        return f"{MAX_ROWS} of {count:,} rows"
    return ""
