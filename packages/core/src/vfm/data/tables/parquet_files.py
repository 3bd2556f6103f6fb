"""Open Parquet and Arrow files, local or remote, and read what Hugging Face's `datasets` stores in their schema."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.base import UserError
from vfm.data.reading.byte_ranges import RangeFile
from vfm.data.samples.captions import field_of
from vfm.data.tables.arrow_files import ArrowFile
from vfm.storage import files
from vfm.storage.remote_spans import RemoteError

BYTES_AT_A_TIME = 1 << 18  # of a column of a local file
DAMAGE = (OSError, pa.ArrowException)  # raised by a row group that is damaged


class _RemoteTable(RangeFile):
    """Read a remote file, and raise `UserError` if its bytes cannot be read.

    A `RemoteError` is an `OSError`, which readers of row groups would count as damage of the file (`DAMAGE`).
    """

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes.

        Raises:
            UserError: If the bytes cannot be read.
        """
        try:
            return super().read(size)
        except RemoteError as error:
            raise UserError(str(error)) from error


def open_parquet(path: str) -> Any:
    """Open a parquet file, or an Arrow file with the same interface.

    Raises:
        UserError: If the file is neither parquet nor Arrow, or is remote and cannot be read.
    """
    if files.without_query(path).lower().endswith(".arrow"):
        return ArrowFile(path)
    try:
        if not files.is_remote(path):
            # By default, all compressed bytes of a row group are read before its first page is decoded. This hides the
            # latency of remote files, but for local files it only takes memory and time.
            return pq.ParquetFile(path, pre_buffer=False, buffer_size=BYTES_AT_A_TIME)
        size, version = files.size_and_time(path)
        return pq.ParquetFile(_RemoteTable(path, size, version=version))
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:  # the last: a name that is not UTF-8
        if getattr(error, "errno", None) is not None:  # an error of the system, not of the file's content
            raise
        raise UserError(f"{path}: not readable as parquet: {' '.join(str(error).split())}") from None


def features_of(path: str) -> dict[str, Any]:
    """Read the features of a table's columns that Hugging Face's `datasets` stores in its schema, if any."""
    metadata = open_parquet(path).schema_arrow.metadata or {}
    try:
        record: Any = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    features = field_of(record, "info.features")
    return features if isinstance(features, dict) else {}


def schema_names(path: str, column: str) -> list[str]:
    """Read the names of a `ClassLabel` that Hugging Face's `datasets` writes into the schema, if any."""
    names = field_of(features_of(path), f"{column}.names")
    return list(map(str, names)) if isinstance(names, list) else []
