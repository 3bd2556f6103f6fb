"""Reading the files of a store and of artifacts: a file that cannot be read gives one line that names it.

Each function imports the libraries that it needs, since planning only reads JSON.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from vfm.base import Config, UserError, error_lines

NPY_MAGIC = b"\x93NUMPY"
C = TypeVar("C", bound=Config)


@contextmanager
def reading(file: str | Path, form: str) -> Iterator[None]:
    """Turn every error of reading a file into a line that names it.

    Args:
        file: The file.
        form: Its format, for the line.

    Raises:
        UserError: If the file is a FIFO or a device (it may never end), or the code in the `with` block raised an
            error.
    """
    _check_never_ending(file)
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        reason = error.strerror if error.errno else _line(error)
        raise UserError(f"{file}: not readable as {form}: {reason}") from None
    except Exception as error:  # on damaged bytes, the libraries raise errors of many types
        raise UserError(f"{file}: not readable as {form}: {_line(error)}") from None


@contextmanager
def naming(file: str | Path, form: str) -> Iterator[None]:
    """Turn every error of using a file's content into lines that name it, including a `UserError` without the name.

    Args:
        file: The file.
        form: Kind of content, for the line.

    Raises:
        UserError: If the code in the `with` block raised an error.
    """
    try:
        with reading(file, form):
            yield
    except UserError as error:
        name = Path(file).name
        lines = [line if name in line else f"{file}: {line}" for line in str(error).splitlines()]
        raise UserError("\n".join(lines)) from None


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If the file is missing or damaged.
    """
    with reading(file, "JSON"):
        return json.loads(file.read_bytes().decode("utf-8"))


def read_record(file: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Args:
        file: The file.
        keys: Keys that the object must have.

    Raises:
        UserError: If the file is missing or damaged, is not an object, or lacks a key.
    """
    with reading(file, "JSON"):
        data = file.read_bytes()
    return as_record(file, data, *keys)


def as_record(file: Path, data: bytes, *keys: str) -> dict[str, Any]:
    """Parse the bytes of a file as a JSON object.

    Args:
        file: The file, for errors.
        data: Its bytes.
        keys: As in `read_record`.

    Raises:
        UserError: If the bytes are damaged, are not an object, or lack a key.
    """
    with reading(file, "JSON"):
        record = json.loads(data.decode("utf-8"))
    if not isinstance(record, dict):
        raise UserError(f"{file}: expected a JSON object, got a {type(record).__name__}")
    for key in keys:
        if key not in record:
            raise UserError(f"{file}: expected {', '.join(map(repr, keys))}; {key!r} is missing")
    return record


def read_config(file: Path, model: type[C]) -> C:
    """Read a JSON file and validate it as a configuration.

    Raises:
        UserError: If the file is missing or damaged, or its values are not valid.
    """
    record = read_record(file)
    try:
        return model.model_validate(record)
    except ValidationError as error:
        where, line = error_lines(error, model)[0]
        raise UserError(f"{file}: {'.'.join(map(str, where))}: {line}") from None


def read_json_lines(file: Path) -> list[Any]:
    """Read a file with one JSON value per line.

    Raises:
        UserError: If the file is missing, or a line is damaged. The error has its number.
    """
    with reading(file, "JSON lines"):
        lines = file.read_bytes().decode("utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        with reading(f"{file}: line {number}", "JSON"):
            records.append(json.loads(line))
    return records


def read_parquet(file: str | Path, columns: Sequence[str] | None = None) -> Any:
    """Read the table of a Parquet file. Page checksums are verified if it has any.

    Args:
        file: The file.
        columns: Columns to read. All of them must exist. Default: all.

    Raises:
        UserError: If the file is missing or damaged, or lacks a column.
    """
    parquet = open_parquet_file(file)
    with parquet, reading(file, "Parquet"):
        for name in columns or ():
            if name not in parquet.schema_arrow.names:
                raise UserError(f"{file}: expected the columns {', '.join(columns or ())}; {name!r} is missing")
        return parquet.read(columns=columns)


def open_parquet_file(file: str | Path) -> Any:
    """Open a Parquet file as a `pyarrow.parquet.ParquetFile`. Read its row groups within `reading`.

    Raises:
        UserError: If the file is missing, or its footer is damaged.
    """
    import pyarrow.parquet as pq

    with reading(file, "Parquet"):
        return pq.ParquetFile(file, page_checksum_verification=True)


def read_npy(file: str | Path, *, mapped: bool = False) -> Any:
    """Load the array of an npy file, optionally memory-mapped.

    Raises:
        UserError: If the file is missing or damaged.
    """
    import numpy as np

    with reading(file, "npy"):
        with open(file, "rb") as stream:  # numpy assumes that any other file is a pickle, and recommends allow_pickle
            if stream.read(len(NPY_MAGIC)) != NPY_MAGIC:
                raise ValueError("it does not begin as an npy file")
        mode: Literal["r"] | None = "r" if mapped else None
        return np.load(file, mmap_mode=mode, allow_pickle=False)


def read_safetensors(file: str | Path) -> dict[str, Any]:
    """Load the tensors of a safetensors file.

    Raises:
        UserError: If the file is missing or damaged.
    """
    from safetensors.torch import load_file

    with reading(file, "safetensors"):
        return dict(load_file(file))


def _check_never_ending(file: str | Path) -> None:
    mode = stat.S_IFREG
    with suppress(OSError, ValueError):  # missing, an address, or a name with a NUL: opening it reports that
        mode = os.stat(file).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{file}: expected a regular file, got a FIFO, a socket or a device")


def _line(error: Exception) -> str:
    """Format an error as one line, or the name of its type if it has no text."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return ".".join(map(str, first["loc"])) + f": {first['msg']}"
    if type(error) is KeyError:
        return f"{error} is missing"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
