"""Read image paths and captions from csv, tsv, jsonl or parquet. Consecutive rows with the same image are one sample.

Text is UTF-8, or UTF-16 with a byte order mark, as in Excel's "Unicode Text".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice

from vfm.base import UserError
from vfm.data.ledger.account import Account, Unit
from vfm.data.samples.caption_templates import columns_of, filled, is_template
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import BadSample
from vfm.data.samples.spec import DatasetSpec
from vfm.data.samples.texts import is_text
from vfm.data.tables.delimited import delimited_rows, header_of, is_image
from vfm.data.tables.fiftyone_labels import COLUMNS, fiftyone_rows, is_fiftyone_labels, num_fiftyone_labels
from vfm.data.tables.image_list import ImageEntry, Row, entry_of_rows
from vfm.data.tables.parquet_files import open_parquet
from vfm.data.tables.table_rows import counted_lines, json_rows, listed_rows, open_text, parquet_rows, text_lines
from vfm.storage import files

TABLE_EXTENSIONS = ("csv", "tsv", "jsonl", "parquet")
FIFTYONE = "fiftyone"
LIST_EXTENSION = "txt"  # the path of an image in each line, or a caption
PATH_COLUMNS = ("image", "filepath", "file_name", "filename", "image_path", "path", "file", "img")
CAPTION_COLUMNS = ("caption", "text", "title", "captions", "texts", "txt", "TEXT", "alt")
PlacedRow = tuple[int, int, Row | BadSample]
"""First line of a row, the line after its last, and the row. In Parquet and Arrow, lines are rows."""
ROWS_FOR_COLUMNS = 20  # JSON lines whose keys are the columns
_EXTENSION = re.compile(rf"\.(?:{'|'.join(sorted(IMAGE_EXTENSIONS, key=len, reverse=True))})", re.IGNORECASE)


def table_kind(path: str) -> str:
    """Find the extension of a table's format, without `.gz`, or `fiftyone` for FiftyOne's json.

    Arrow is read as parquet. A text file with a tab in its first line, as Excel saves it, is read as tsv.
    """
    kind = files.without_query(path).lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == LIST_EXTENSION:
        with open_text(path) as text:
            return "tsv" if "\t" in next(text_lines(text, path), "") else kind
    if kind == "arrow":
        return "parquet"
    return FIFTYONE if is_fiftyone_labels(path) else kind


def lists_captions(path: str) -> bool:
    """Check whether a text file has a caption in each line, so none of its first lines is the path of an image."""
    if table_kind(path) != LIST_EXTENSION:
        return False
    for row in islice(table_rows(path), ROWS_FOR_COLUMNS):
        if isinstance(row, dict) and is_image(row[PATH_COLUMNS[0]].strip()):
            return False
    return True


def table_columns(path: str) -> list[str]:
    """Read a table's column names from the header, the first readable JSON lines, or the schema.

    Raises:
        UserError: If the table is empty, or of an unknown format.
    """
    kind = table_kind(path)
    if kind == "parquet":
        return list(open_parquet(path).schema_arrow.names)
    if kind == LIST_EXTENSION:
        return [PATH_COLUMNS[0]]
    if kind == FIFTYONE:
        return COLUMNS
    if kind not in TABLE_EXTENSIONS:
        raise UserError(f"{path}: expected a table with the extension {', '.join(TABLE_EXTENSIONS)}")
    if kind == "jsonl":
        first_rows = islice(_readable_rows(path), ROWS_FOR_COLUMNS)
        columns = list(dict.fromkeys(chain.from_iterable(first_rows)))
    else:
        with open_text(path) as text:
            _, columns = header_of(text_lines(text, path), tabs=kind == "tsv")
    if not any(columns):
        expected = "; expected a JSON object in each line" if kind == "jsonl" else ""
        raise UserError(f"{path}: the table is empty{expected}")
    return columns


def text_columns(path: str) -> list[str]:
    """Find the columns of a table with text. Without types, these are the columns with a word in the first row."""
    if table_kind(path) == "parquet":
        schema = open_parquet(path).schema_arrow
        return [field.name for field in schema if is_text(getattr(field.type, "value_type", field.type))]
    first = next(_readable_rows(path), {})
    return [name for name, value in first.items() if isinstance(value, str) and any(map(str.isalpha, value))]


# What to write where no column has a usual name, by configuration field.
HINTS = {"texts": "; captions can be made of other columns: --data-option 'texts=a photo of a {COLUMN}'"}


def _readable_rows(path: str) -> Iterator[Row]:
    return (row for row in table_rows(path) if isinstance(row, dict))


def find_column(columns: list[str], name: str | None, defaults: tuple[str, ...], field: str, path: str) -> str:
    """Find the column that the user named, or else the first default name that exists.

    Args:
        columns: Names of the table's columns.
        name: Column that the user named, or None.
        defaults: Usual names.
        field: Configuration field that names the column, for the error.
        path: Path of the table, for the error.

    Raises:
        UserError: If there is no such column. The error lists the columns.
    """
    for candidate in [name] if name else defaults:
        if candidate in columns:
            return candidate
    named = ", ".join(filter(None, columns))  # pandas writes its index as a column without a name
    hint = HINTS.get(field, "") if not name else ""
    raise UserError(f"{path}: no column '{name or defaults[0]}' ({field}); the columns are {named}{hint}")


def table_values(path: str, column: str) -> Iterator[object]:
    """Yield the values of a column, except for unreadable rows."""
    for row in table_rows(path, only=[column]):
        if isinstance(row, dict):
            yield row.get(column)


def unit_of_table(path: str) -> Unit:
    """Name what an account of a table counts."""
    kind = table_kind(path)
    if kind == "parquet":
        return "rows"
    return "records" if kind == FIFTYONE else "lines"


def table_entries(
    path: str, image_root: str, spec: DatasetSpec, account: Account | None = None
) -> Iterator[ImageEntry]:
    """Yield the table's samples. Image paths are relative to `image_root` and may not leave it.

    Args:
        path: The table.
        image_root: Folder of the images.
        spec: Parts to read of each sample.
        account: Receives the sample of each line or row.

    Raises:
        UserError: If a column that the spec names is missing.
    """
    columns = table_columns(path)
    image_columns = [index for index, value in enumerate(columns) if is_image(value)]
    headless = bool(image_columns) and not (spec.image_key or spec.texts or spec.label_key)
    if headless:  # a list of images without a header
        columns = [f"column {index}" for index in range(len(columns))]
        columns[image_columns[0]] = PATH_COLUMNS[0]
    location = spec.image_key or find_column(columns, None, PATH_COLUMNS, "image_key", path)
    for column in columns_of([location]):
        find_column(columns, column, (), "image_key", path)
    sources = [*spec.texts.values()]
    if spec.label_key:
        sources.append(spec.label_key)
    for column in columns_of(sources):
        find_column(columns, column, (), "texts or label_key", path)
    for column in columns_of(spec.columns):
        find_column(columns, column, (), "columns", path)

    def image_of(placed: PlacedRow) -> object:
        # Unreadable rows and rows without an image are separate samples: each gets a unique object as its key.
        row = placed[2]
        image = image_name(row, location) if isinstance(row, dict) else None
        return image or object()

    account = account or Account(path, unit_of_table(path))
    all_rows = placed_rows(path, account, columns if headless else None, image_column=location)
    is_list = table_kind(path) == LIST_EXTENSION
    for name, group in groupby(all_rows, key=image_of):
        rows = []
        for start, stop, row in group:
            account.give(start, stop)
            rows.append(row)
        entry = entry_of_rows(name, rows, image_root, spec, path)
        yield entry
        if is_list and not entry.problem:
            yield from _merged_with(entry, path)


def image_name(row: Row, location: str) -> object:
    """Read the path of a row's image.

    It is the value of a column, or a template such as `{image_id}.jpg` filled in.
    """
    if is_template(location):
        return next(iter(filled(location, row.get, {})), None)
    return row.get(location)


def _merged_with(entry: ImageEntry, path: str) -> Iterator[ImageEntry]:
    """Yield a bad sample for each further path in a line of a list, merged by a damaged line break."""
    more = len(_EXTENSION.findall(entry.key)) - 1
    if more > 0 and not files.exists(entry.image):
        for _ in range(more):
            yield ImageEntry("", path, problem=BadSample("unreadable_row", entry.key))


def table_rows(
    path: str, columns: list[str] | None = None, *, image_column: str | None = None, only: Sequence[str] | None = None
) -> Iterator[Row | BadSample]:
    """Yield the rows of a table. An unreadable row is a BadSample.

    Args:
        path: As in `placed_rows`.
        columns: As in `placed_rows`.
        image_column: As in `placed_rows`.
        only: As in `placed_rows`.

    Raises:
        UserError: If the file is not readable as a table.
    """
    account = Account(path, unit_of_table(path))
    for _, _, row in placed_rows(path, account, columns, image_column=image_column, only=only):
        yield row


def placed_rows(
    path: str,
    account: Account,
    columns: list[str] | None = None,
    *,
    image_column: str | None = None,
    only: Sequence[str] | None = None,
) -> Iterator[PlacedRow]:
    """Yield each row of a table after the range of lines in which it is. An unreadable row is a BadSample.

    Args:
        path: The table.
        account: Receives the lines that are no rows, and the number of all lines.
        columns: Column names of a csv or tsv file without a header, or a column name for the lines of a text file.
        image_column: Column of image paths. It helps to find rows that a damaged byte has merged.
        only: Columns to read, if the format allows it.

    Raises:
        UserError: If the file is not readable as a table.
    """
    kind = table_kind(path)
    if kind == "parquet":
        account.size = open_parquet(path).metadata.num_rows
        yield from _numbered(parquet_rows(path, only))
        return
    if kind == FIFTYONE:
        account.size = num_fiftyone_labels(path)
        yield from _numbered(fiftyone_rows(path))
        return
    with open_text(path) as text:
        lines = counted_lines(text_lines(text, path), account)
        placed: Iterator[tuple[int, int, Row | BadSample | str]]
        if kind == LIST_EXTENSION:
            placed = listed_rows(lines, columns[0] if columns else PATH_COLUMNS[0])
        elif kind == "jsonl":
            placed = json_rows(lines, path)
        else:
            placed = delimited_rows(lines, path, columns, image_column, tabs=kind == "tsv")
        for start, stop, row in placed:
            if isinstance(row, str):
                account.leave(start, stop, row)
            else:
                yield start, stop, row


def _numbered(rows: Iterable[Row | BadSample]) -> Iterator[PlacedRow]:
    for number, row in enumerate(rows):
        yield number, number + 1, row
