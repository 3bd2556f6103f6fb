"""Read the lines of text files and the rows in them, or the rows of parquet files, one at a time."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import IO, Any, cast

from vfm.base import UserError
from vfm.data.ledger.account import Account
from vfm.data.samples.sample import BadSample
from vfm.data.tables.delimited import MAX_LINE
from vfm.data.tables.image_list import Row
from vfm.data.tables.parquet_files import DAMAGE, open_parquet
from vfm.storage import files

BLANK = "blank"  # use of a line without a row


def counted_lines(lines: Iterator[str], account: Account) -> Iterator[str]:
    """Yield lines, and write their number into the account after the last."""
    number = 0
    for number, line in enumerate(lines, start=1):  # noqa: B007 (used after the loop)
        yield line
    account.size = number


def listed_rows(lines: Iterator[str], column: str) -> Iterator[tuple[int, int, Row | str]]:
    """Yield a row for each line of a list, with the line in a column."""
    for number, line in enumerate(lines):
        yield number, number + 1, {column: line.strip("\r\n")} if line.strip() else BLANK


@contextmanager
def open_text(path: str) -> Iterator[IO[str]]:
    """Open the table's text, decompressed.

    Raises:
        UserError: If the file cannot be read, or the code in the `with` block finds that it is not a table.
    """
    try:
        with files.open_binary(path) as stream:
            raw = stream
            if files.without_query(path).lower().endswith(".gz"):
                raw = cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
            wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            raw.seek(0)
            encoding, errors = ("utf-16", "surrogatepass") if wide else ("utf-8-sig", "surrogateescape")
            with io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline="") as text:
                yield text
    except (csv.Error, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # the last: half a character
        raise UserError(f"{path}: not readable: {error}") from None


def text_lines(text: IO[str], path: str) -> Iterator[str]:
    r"""Yield the lines of a table with their ends, \n, \r\n or \r.

    Raises:
        UserError: If a line is too long.
    """
    for number in count(1):
        line = text.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            raise UserError(f"{path}: line {number} is longer than {MAX_LINE >> 20} MiB; expected one row per line")
        yield line


def parquet_rows(path: str, columns: Sequence[str] | None) -> Iterator[Row | BadSample]:
    """Yield the rows of a parquet file. Rows that cannot be read are BadSamples."""
    file = open_parquet(path)
    for group in range(file.num_row_groups):
        left = file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(10_000, row_groups=[group], columns=columns):
                left -= batch.num_rows
                yield from _rows_of_batch(batch, path)
        except DAMAGE:  # other row groups are still readable
            for _ in range(left):
                yield BadSample("unreadable_row", f"{path}: row group {group}")


def _rows_of_batch(batch: Any, path: str) -> Iterator[Row | BadSample]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # a text is not UTF-8: convert row by row, to lose only that row
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield BadSample("wrong_encoding", path)


def json_rows(lines: Iterator[str], path: str) -> Iterator[tuple[int, int, Row | BadSample | str]]:
    """Yield the JSON objects in lines, each after its range of lines."""
    first = None  # pattern for the beginning of every row, from the first readable row
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            yield number - 1, number, BLANK
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            first = first or re.compile(r"\{\s*" + re.escape(json.dumps(next(iter(row), ""), ensure_ascii=False)))
            yield number - 1, number, row
            continue
        # A line contains several rows if the line break between them is damaged.
        num_rows = max(1, len(first.findall(line)) if first else 1)
        for index in range(num_rows):  # the line belongs to the first
            yield number - 1 + bool(index), number, BadSample("broken_json", f"{path}: line {number}")
