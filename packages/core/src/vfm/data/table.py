"""A table of image paths and captions: csv, tsv, jsonl or parquet. Consecutive rows of one image are one sample."""

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

from vfm.config import UserError
from vfm.data import files
from vfm.data.captions import clean_captions, field_of, require_captions
from vfm.data.image_list import ImageEntry
from vfm.data.parquet import open_parquet
from vfm.data.sample import BadSample
from vfm.data.spec import DatasetSpec

TABLE_EXTENSIONS = ("csv", "tsv", "jsonl", "parquet")
PATH_COLUMNS = ("image", "filepath", "file_name", "filename", "image_path", "path", "file", "img")
CAPTION_COLUMNS = ("caption", "text", "title", "captions", "texts", "txt", "TEXT", "alt")
PROBLEM = ""  # no column has this name

Row = dict[str, Any]


def table_kind(path: str) -> str:
    """The extension that tells a table's format, without the `.gz` of a packed one."""
    return path.lower().removesuffix(".gz").rpartition(".")[2]


def table_columns(path: str) -> list[str]:
    """Names of a table's columns: the header's, the keys of the first line that can be read, the schema's.

    Raises:
        UserError: the table is empty, or not one of the formats.
    """
    kind = table_kind(path)
    if kind == "parquet":
        return list(open_parquet(path).schema_arrow.names)
    if kind not in TABLE_EXTENSIONS:
        raise UserError(f"{path}: a table ends in {', '.join(TABLE_EXTENSIONS)}")
    if kind == "jsonl":
        columns = list(next((row for row in table_rows(path) if PROBLEM not in row), {}))
    else:
        with _open(path) as stream:
            header = stream.readline().decode("utf-8-sig", "replace").strip("\r\n")
        columns = next(csv.reader([header], dialect=_dialect(path)), [])
    if not columns:
        raise UserError(f"{path}: the table is empty")
    return columns


def find_column(columns: list[str], wanted: str | None, known: tuple[str, ...], what: str, path: str) -> str:
    """The column that the user named, else the first known one.

    Raises:
        UserError: there is none; the columns are listed.
    """
    found = next((name for name in ([wanted] if wanted else known) if name in columns), None)
    if found is None:
        raise UserError(f"{path}: no column '{wanted or known[0]}' ({what}); the columns are {', '.join(columns)}")
    return found


def table_values(path: str, column: str) -> Iterator[object]:
    """The values of one column."""
    if table_kind(path) == "parquet":
        for batch in open_parquet(path).iter_batches(columns=[column]):
            yield from batch[column].to_pylist()
    else:
        yield from (row.get(column) for row in table_rows(path))


def table_entries(path: str, image_root: str, spec: DatasetSpec) -> Iterator[ImageEntry]:
    """The table's samples; `image_root` is the folder that image paths start from and must not leave.

    Raises:
        UserError: a column that the spec names is missing.
    """
    columns = table_columns(path)
    image_column = find_column(columns, spec.image_key, PATH_COLUMNS, "image_key", path)
    for source in [*spec.texts.values(), *([spec.label_key] if spec.label_key else [])]:
        find_column(columns, source.partition(".")[0], (), "texts or label_key", path)
    # What has no image, or cannot be read, is a sample of its own: no two of it are the same.
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
    """A cell whose bytes were no UTF-8 holds half surrogates since it was read; it is told, not passed on."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, str) and any("\udc80" <= sign <= "\udcff" for sign in item) for item in values):
        raise BadSample("wrong_encoding", where)
    return value


def table_rows(path: str, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows; of one that cannot be read, its problem alone (under the key PROBLEM).

    `columns` are the names of a csv's or tsv's columns where it has no header.
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
    """The table's bytes, unpacked.

    Raises:
        UserError: they cannot be read, or a reader of them finds that they are no table.
    """
    try:
        with files.open_binary(path) as stream:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if path.lower().endswith(".gz") else stream
    except (csv.Error, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not readable: {error}") from None


def _parquet_rows(batch: Any, path: str) -> Iterator[Row]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # one text is no UTF-8: row by row, to lose that one alone
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
    """Tables with tabs are mostly raw, and a caption may begin with a quotation mark."""

    quoting = csv.QUOTE_NONE


def _dialect(path: str) -> type[csv.Dialect]:
    return _RawTabs if table_kind(path) == "tsv" else csv.excel


def _delimited_rows(text: io.TextIOWrapper, path: str, columns: list[str] | None) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)  # an overlong caption is one bad sample, not the end of the table
    for row in csv.DictReader(text, columns, dialect=_dialect(path)):
        yield {name: value for name, value in row.items() if name is not None}
