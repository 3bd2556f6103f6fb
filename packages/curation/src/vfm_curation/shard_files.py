"""Files that tasks write for their shards: parquet or Arrow, written whole or not at all.

Arrow files are for what the next pass reads: they are written five times as fast, and mapped instead of read. A file's
own metadata holds the hash of its source and its summary, so that a file cannot be separated from them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.plugin import UserError, store_files

# Columns with few distinct values; a dictionary for uids and texts would only cost time.
FEW_VALUES = ["shard", "language", "detected", "text_index", "reason", "field"]
ARROW = ".arrow"  # suffix of Arrow files; all others are parquet
SUMMARY_KEY = b"vfm.summary"
MADE_FROM_KEY = b"vfm.made_from"
CHECKSUM_KEY = b"vfm.checksum"  # of an Arrow file's values, since Arrow has no checksums of its own
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}  # of file systems without links


def made_from(*parts: Any) -> str:
    """Hash the inputs of a shard's file.

    Args:
        *parts: Fingerprint of its input, hashes and versions, as JSON values.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_shard_file(
    file: Path, table: pa.Table, source: str, summary: Mapping[str, Any], *, rows_a_group: int | None = None
) -> None:
    """Write a table with its summary (JSON values). `source` is the `made_from` of its input.

    The file of a shard that could not be read is not `finished_summary` of its source, so that a run that resumes tries
    the shard again. An Arrow file is one batch without compression, and `rows_a_group` is for parquet alone.
    """
    if summary.get("num_lost"):
        source = made_from(source, "lost")
    facts = _facts(source, summary)
    with whole_file(file) as part:
        if file.suffix == ARROW:
            table = table.combine_chunks()
            table = table.replace_schema_metadata({**facts, CHECKSUM_KEY: _checksum(table)})
            with pa.ipc.new_file(part, table.schema) as writer:
                writer.write_table(table)
        else:
            _write_parquet(part, table.replace_schema_metadata(None), facts, rows_a_group)


def _write_parquet(file: Path, table: pa.Table, facts: Mapping[Any, Any], rows_a_group: int | None) -> None:
    """Write a table with its facts. Dictionaries, in which texts are written faster, are read as their values."""
    writer = pq.ParquetWriter(
        file,
        table.schema,
        compression=_codecs(table.schema),
        use_dictionary=FEW_VALUES,
        write_statistics=False,  # a tenth of the time, and nobody reads them
        write_page_checksum=True,
        # With Arrow's schema, readers would make dictionaries again.
        store_schema=not any(map(pa.types.is_dictionary, table.schema.types)),
    )
    with writer:
        writer.write_table(table, rows_a_group)
        writer.add_key_value_metadata(facts)  # apart from the schema, which may not be stored


def _codecs(schema: pa.Schema) -> dict[str, str]:
    """Choose zstd for columns with text.

    Numbers are not compressed, because they would be hardly smaller and much slower.
    """
    codecs = {}
    for field in schema:
        is_list = pa.types.is_list(field.type)
        kind = field.type.value_type if is_list else field.type
        is_number = pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind)
        codecs[f"{field.name}.list.element" if is_list else field.name] = "none" if is_number else "zstd"
    return codecs


def write_batches(file: Path, parts: Iterable[pa.Table], schema: pa.Schema, source: str, summary: Any) -> None:
    """Write tables as the batches of an Arrow file. `read_batch` can read each of them without the others.

    Finding a batch costs a tenth of the time it takes in parquet, whose footer is always read as a whole.
    """
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    schema = schema.with_metadata(_facts(source, summary))
    with whole_file(file) as part, pa.ipc.new_file(part, schema, options=options) as writer:
        for table in parts:
            columns = [column.combine_chunks() for column in table.columns]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def read_arrow_file(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Map an Arrow file of `write_shard_file` into memory, and check the offsets and the text of the columns.

    Raises:
        UserError: If the file is missing or damaged.
    """
    with store_files.reading(file, "a shard's file"):
        with pa.memory_map(str(file)) as opened:
            table = pa.ipc.open_file(opened).read_all()
        table = table.select(columns) if columns else table
        table.validate(full=True)
    return table


def read_batch(file: Path, number: int) -> pa.RecordBatch:
    """Read one batch of a file written by `write_batches`."""
    with pa.OSFile(str(file)) as opened:
        return pa.ipc.open_file(opened).get_batch(number)


def _facts(source: str, summary: Mapping[str, Any]) -> dict[bytes | str, bytes | str]:
    return {MADE_FROM_KEY: source, SUMMARY_KEY: json.dumps(summary)}


def finished_summary(file: Path, source: str | None = None) -> dict[str, Any] | None:
    """Read the summary in a shard's file.

    With a source, the values of an Arrow file are read too, because the stage that resumes from the file publishes them
    with new hashes.

    Returns:
        The summary. None if the file is damaged or made from another source.
    """
    try:
        facts = _stored_facts(file)
    except (pa.ArrowInvalid, OSError):  # after a power cut a file may be renamed although its bytes were never written
        return None
    if source is not None and facts.get(MADE_FROM_KEY) != source.encode():
        return None
    if source is not None and CHECKSUM_KEY in facts and not _is_intact(file, facts[CHECKSUM_KEY]):
        return None
    try:
        summary: dict[str, Any] = json.loads(facts[SUMMARY_KEY])
    except (KeyError, ValueError):  # flipped bits in the footer
        return None
    return summary


class _Checksum:
    """A file that keeps only the CRC-32 of what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.value = 0

    def write(self, data: bytes) -> int:
        self.value = zlib.crc32(data, self.value)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _checksum(table: pa.Table) -> bytes:
    checksum = _Checksum()
    with pa.ipc.new_stream(pa.PythonFile(checksum, "w"), table.schema.remove_metadata()) as writer:
        writer.write_table(table)
    return b"%08x" % checksum.value


def _is_intact(file: Path, checksum: bytes) -> bool:
    try:
        return _checksum(read_arrow_file(file)) == checksum
    except UserError:
        return False


def hash_of_source(file: Path) -> str:
    """Read the `made_from` that a finished file was written with."""
    with store_files.reading(file, "a shard's file"):
        return _stored_facts(file)[MADE_FROM_KEY].decode()


def all_uids_packed(files: Iterable[Path]) -> bool:
    """Check whether the uids of all Arrow files take 16 bytes, so that those of a subset made from them can too."""
    return all(map(_uids_packed, files))


def _uids_packed(file: Path) -> bool:
    with store_files.reading(file, "a shard's file"), pa.OSFile(str(file)) as opened:
        reader = pa.ipc.open_file(opened)
        if pa.types.is_fixed_size_binary(reader.schema.field("uid").type):
            return True
        # A match of an older version has text in files without rows.
        return not any(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))


def _stored_facts(file: Path) -> dict[bytes, bytes]:
    """Read the metadata of a file."""
    if file.suffix != ARROW:
        return pq.read_metadata(file).metadata or {}
    with pa.OSFile(str(file)) as opened:
        return pa.ipc.open_file(opened).schema.metadata or {}


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Yield a path to write to, and rename the written file to `file` at the end.

    After an error nothing is renamed. The path is unique, so that two workers on one shard (one may be believed dead)
    cannot mix their files. It is in a folder next to the file's, so the file must be inside the stage's work folder.
    """
    # Parts that a kill leaves must not become part of the artifact.
    folder = file.parent.with_name(f"{file.parent.name}.parts")
    folder.mkdir(exist_ok=True)
    part = folder / f"{file.name}.{uuid.uuid4().hex}"
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def link_files(folder: Path, target: Path) -> Path:
    """Link the finished files of a folder in the stage's work folder into a new folder of its artifact.

    They stay in the work folder until the artifact is published. Before that, all files are hashed and flushed to the
    disk, which takes minutes for a large pool, and a run that is killed meanwhile would otherwise repeat all of them.
    On a file system without hard links the folder is moved.
    """
    target.mkdir()
    allowed = target.stat().st_mode & 0o666
    try:
        for file in sorted(folder.iterdir()):
            # Publishing leaves the permissions of hard links as they are, and an attempt under another umask may have
            # written files that only its user may read.
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode | allowed != mode:
                file.chmod(mode | allowed)
            os.link(file, target / file.name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.rmtree(target)
        folder.rename(target)
    return target
