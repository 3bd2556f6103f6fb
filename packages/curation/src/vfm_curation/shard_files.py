"""The file that a task leaves of its shard: parquet, whole or not there, with what it was made from and a summary.

Both lie in the file's own metadata, so that a file and what is said of it cannot come apart.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

FEW_VALUES = ["shard", "language", "detected", "text_index", "field"]  # worth a dictionary, unlike uids and texts
SUMMARY_KEY, MADE_FROM_KEY = b"vfm.summary", b"vfm.made_from"


def made_from(*parts: Any) -> str:
    """The name of what a shard's file is made from: its input's fingerprint, hashes, versions; what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_shard_file(
    file: Path, table: pa.Table, source: str, summary: Mapping[str, Any], *, rows_a_group: int | None = None
) -> None:
    """Writes a table with its summary (what JSON can hold); `source` is what `made_from` says of its input."""
    import pyarrow.parquet as pq

    facts = {MADE_FROM_KEY: source, SUMMARY_KEY: json.dumps(summary)}
    with whole_file(file) as part:
        pq.write_table(
            table.replace_schema_metadata(facts),
            part,
            row_group_size=rows_a_group,
            compression="zstd",
            use_dictionary=FEW_VALUES,
        )


def finished_summary(file: Path, source: str | None = None) -> dict[str, Any] | None:
    """The summary in a shard's file, None where there is no file, or one made from something else than `source`."""
    import pyarrow.parquet as pq

    if not file.is_file():
        return None
    facts = pq.read_schema(file).metadata
    if source is not None and facts.get(MADE_FROM_KEY) != source.encode():
        return None
    summary: dict[str, Any] = json.loads(facts[SUMMARY_KEY])
    return summary


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
