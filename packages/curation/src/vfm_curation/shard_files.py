"""The file that a task leaves of its shard: parquet, whole or not there, with what it was made from and a summary.

Both lie in the file's own metadata, so that a file and what is said of it cannot come apart.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

FEW_VALUES = ["shard", "language", "detected", "text_index", "field"]  # worth a dictionary, unlike uids and texts
ARROW = ".arrow"  # the end of the names of files with batches; all others are parquet
SUMMARY_KEY, MADE_FROM_KEY = b"vfm.summary", b"vfm.made_from"


def made_from(*parts: Any) -> str:
    """The name of what a shard's file is made from: its input's fingerprint, hashes, versions; what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_shard_file(
    file: Path, table: pa.Table, source: str, summary: Mapping[str, Any], *, rows_a_group: int | None = None
) -> None:
    """Writes a table with its summary (what JSON can hold); `source` is what `made_from` says of its input."""
    import pyarrow.parquet as pq

    with whole_file(file) as part:
        pq.write_table(
            table.replace_schema_metadata(_facts(source, summary)),
            part,
            row_group_size=rows_a_group,
            compression="zstd",
            use_dictionary=FEW_VALUES,
        )


def write_batches(file: Path, parts: Iterable[pa.Table], schema: pa.Schema, source: str, summary: Any) -> None:
    """Writes tables as the batches of one Arrow file, of which `read_batch` reads any without the others.

    To find a part costs a tenth of what it does in parquet, whose footer is read as a whole.
    """
    import pyarrow as pa

    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    schema = schema.with_metadata(_facts(source, summary))
    with whole_file(file) as part, pa.ipc.new_file(part, schema, options=options) as writer:
        for table in parts:
            columns = [column.combine_chunks() for column in table.columns]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def read_batch(file: Path, number: int) -> pa.RecordBatch:
    """One part of what `write_batches` wrote."""
    import pyarrow as pa

    with pa.OSFile(str(file)) as opened:
        return pa.ipc.open_file(opened).get_batch(number)


def _facts(source: str, summary: Mapping[str, Any]) -> dict[bytes | str, bytes | str]:
    return {MADE_FROM_KEY: source, SUMMARY_KEY: json.dumps(summary)}


def finished_summary(file: Path, source: str | None = None) -> dict[str, Any] | None:
    """The summary in a shard's file; None where there is none that can be read, or one made from another `source`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = _arrow_schema(file) if file.suffix == ARROW else pq.read_schema(file)
    except (pa.ArrowInvalid, OSError):  # a lost machine can leave a file that was renamed before its bytes were safe
        return None
    facts = schema.metadata or {}
    if source is not None and facts.get(MADE_FROM_KEY) != source.encode():
        return None
    summary: dict[str, Any] = json.loads(facts[SUMMARY_KEY])
    return summary


def _arrow_schema(file: Path) -> pa.Schema:
    import pyarrow as pa

    with pa.OSFile(str(file)) as opened:
        return pa.ipc.open_file(opened).schema


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A path to write to; what was written there appears at `file` by one rename, if nothing has failed.

    The path is nobody else's, so that two workers at one shard (one may be thought lost) cannot mix their files.
    """
    folder = file.parent.with_name(f"{file.parent.name}.parts")  # apart: what a kill leaves is no part of the result
    folder.mkdir(exist_ok=True)
    part = folder / f"{file.name}.{uuid.uuid4().hex}"
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
