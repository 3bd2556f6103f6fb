"""Read the rows of a small csv with the lines that they take."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from vfm.base import UserError
from vfm.data.tables.delimited import MAX_LINE
from vfm.storage import files


def csv_rows(path: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the first line of each row, the line after its last, and its cells. A blank line has none.

    Raises:
        UserError: If a cell is longer than `MAX_LINE`.
    """
    csv.field_size_limit(MAX_LINE)  # of the whole process, so that the answer does not depend on earlier tables
    reader = csv.reader(io.StringIO(files.read_text(path)))
    start = 0
    try:
        for row in reader:
            yield start, reader.line_num, row
            start = reader.line_num
    except csv.Error as error:
        raise UserError(f"{path}: not readable as csv: {error}") from None
