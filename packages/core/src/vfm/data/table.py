"""Tables of image paths and captions: csv, tsv, jsonl or parquet. Consecutive rows of one image are one sample."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import IO, Any, cast

from vfm import files
from vfm.config import UserError
from vfm.data.captions import clean_captions, field_of, require_captions
from vfm.data.image_list import ImageEntry
from vfm.data.parquet import open_parquet
from vfm.data.sample import BadSample
from vfm.data.spec import DatasetSpec

TABLE_EXTENSIONS = ("csv", "tsv", "jsonl", "parquet")
PATH_COLUMNS = ("image", "filepath", "file_name", "filename", "image_path", "path", "file", "img")
CAPTION_COLUMNS = ("caption", "text", "title", "captions", "texts", "txt", "TEXT", "alt")
PROBLEM = ""  # key of an unreadable row's BadSample; no column has this name

Row = dict[str, Any]


def table_kind(path: str) -> str:
    """Return the extension of a table's format, without the `.gz` of a gzipped one."""
    return path.lower().removesuffix(".gz").rpartition(".")[2]


def table_columns(path: str) -> list[str]:
    """Return a table's column names: from the header, the first readable JSON line, or the schema.

    Raises:
        UserError: the table is empty, or of an unknown format.
    """
    kind = table_kind(path)
    if kind == "parquet":
        return list(open_parquet(path).schema_arrow.names)
    if kind not in TABLE_EXTENSIONS:
        raise UserError(f"{path}: expected a table with the extension {', '.join(TABLE_EXTENSIONS)}")
    if kind == "jsonl":
        columns = list(next((row for row in table_rows(path) if PROBLEM not in row), {}))
    else:
        with _open(path) as stream:
            header = stream.readline().decode("utf-8-sig", "replace").strip("\r\n")
        columns = next(csv.reader([header], dialect=_dialect(path)), [])
    if not columns:
        raise UserError(f"{path}: the table is empty")
    return columns


def find_column(columns: list[str], name: str | None, defaults: tuple[str, ...], field: str, path: str) -> str:
    """Return the column that the user named, else the first of the default names that exists.

    Args:
        columns: names of the table's columns.
        name: column that the user named, or None.
        defaults: usual names.
        field: configuration field that names the column, for the error.
        path: path of the table, for the error.

    Raises:
        UserError: there is no such column; the line lists the columns.
    """
    found = next((one for one in ([name] if name else defaults) if one in columns), None)
    if found is None:
        raise UserError(f"{path}: no column '{name or defaults[0]}' ({field}); the columns are {', '.join(columns)}")
    return found


def table_values(path: str, column: str) -> Iterator[object]:
    """Yield the values of one column."""
    if table_kind(path) == "parquet":
        for batch in open_parquet(path).iter_batches(columns=[column]):
            yield from batch[column].to_pylist()
    else:
        yield from (row.get(column) for row in table_rows(path))


def table_entries(path: str, image_root: str, spec: DatasetSpec) -> Iterator[ImageEntry]:
    """Yield the table's samples; image paths are relative to `image_root` and may not leave it.

    Raises:
        UserError: a column that the spec names is missing.
    """
    columns = table_columns(path)
    image_column = find_column(columns, spec.image_key, PATH_COLUMNS, "image_key", path)
    for source in [*spec.texts.values(), *([spec.label_key] if spec.label_key else [])]:
        find_column(columns, source.partition(".")[0], (), "texts or label_key", path)
    # Rows without an image or that cannot be read are samples of their own: each gets a unique object as its key.
    for name, rows in groupby(table_rows(path), key=lambda row: row.get(image_column) or object()):
        yield _entry(name, list(rows), image_root, spec, path)


def _entry(name: object, rows: list[Row], image_root: str, spec: DatasetSpec, path: str) -> ImageEntry:
    if problem := rows[0].get(PROBLEM):
        return ImageEntry("", problem.where, problem=problem)
    if not isinstance(name, str) or not name:
        return ImageEntry("", path, problem=BadSample("missing_image", path))
    image = files.join_inside(image_root, name)
    if image is None:
        return ImageEntry(name, name, problem=BadSample("unsafe_path", name))
    try:
        texts: dict[str, list[str]] = {
            language: [text for row in rows for text in clean_captions(_checked(field_of(row, source), image), image)]
            for language, source in spec.texts.items()
        }
        if spec.texts:
            texts = require_captions(texts, image)
        label = spec.label_of(field_of(rows[0], spec.label_key), image) if spec.label_key else None
    except BadSample as bad:
        return ImageEntry(name, image, problem=bad)
    return ImageEntry(name, image, texts, label)


def _checked(value: object, where: str) -> object:
    """Return the value of a cell; raises BadSample if its bytes were not UTF-8, which were read as half surrogates."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, str) and any("\udc80" <= char <= "\udcff" for char in item) for item in values):
        raise BadSample("wrong_encoding", where)
    return value


def table_rows(path: str, columns: list[str] | None = None) -> Iterator[Row]:
    """Yield the rows; of a row that cannot be read, only its problem under the key PROBLEM.

    `columns` are the column names of a csv or tsv without a header.
    """
    kind = table_kind(path)
    if kind == "parquet":
        for batch in open_parquet(path).iter_batches(10_000):
            yield from _parquet_rows(batch, path)
        return
    with _open(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        yield from _json_rows(text, path) if kind == "jsonl" else _delimited_rows(text, path, columns)


@contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    """Open the table's bytes, decompressed.

    Raises:
        UserError: they cannot be read, or the code in the `with` block finds that they are not a table.
    """
    try:
        with files.open_binary(path) as stream:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if path.lower().endswith(".gz") else stream
    except (csv.Error, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not readable: {error}") from None


def _parquet_rows(batch: Any, path: str) -> Iterator[Row]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # a text is not UTF-8: convert row by row, to lose only that row
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield {PROBLEM: BadSample("wrong_encoding", path)}


def _json_rows(text: io.TextIOWrapper, path: str) -> Iterator[Row]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else {PROBLEM: BadSample("broken_json", f"{path}: line {number}")}


class _RawTabs(csv.excel_tab):
    """Tab-separated without quoting: such tables are mostly raw, and a caption may begin with a quotation mark."""

    quoting = csv.QUOTE_NONE


def _dialect(path: str) -> type[csv.Dialect]:
    return _RawTabs if table_kind(path) == "tsv" else csv.excel


def _delimited_rows(text: io.TextIOWrapper, path: str, columns: list[str] | None) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)  # so that an overlong caption is one bad sample, and not an error of the table
    for row in csv.DictReader(text, columns, dialect=_dialect(path)):
        yield {name: value for name, value in row.items() if name is not None}
