"""Shards of the format `files`. They list image files with their texts and labels.

The content of a folder, a table or class folders is listed once, as parquet in the artifact. The images stay in place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.base import redacted
from vfm.data.samples.arrays import one_array
from vfm.data.samples.captions import captions_at, captions_of, field_of, is_unicode, require_captions
from vfm.data.samples.columns import column_name, read_columns, require_column
from vfm.data.samples.sample import UNREACHABLE, BadSample, Sample, uid_of
from vfm.data.samples.shards import Shard, ShardReader
from vfm.data.samples.spec import DatasetSpec
from vfm.data.samples.texts import OnBad, Rows, texts_by_column, texts_by_sample, uids_of
from vfm.storage import files
from vfm.storage.credentials import check_addresses
from vfm.storage.remote_spans import RemoteError
from vfm.storage.store_files import read_parquet

ROWS_PER_SHARD = 10_000  # images are read one by one, so shards only serve their shuffling

Row = dict[str, Any]


@dataclass(frozen=True)
class ImageEntry:
    """An image file with its texts and label. If it is unusable, reading it raises its `problem`."""

    key: str
    image: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    label: int | None = None
    problem: BadSample | None = None
    columns: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def reason(self) -> str | None:
        """Reason why the image cannot be used. A name that is not UTF-8 cannot be listed."""
        if self.problem:
            return self.problem.reason
        name = self.key + self.image
        return None if printable(name) == name else "wrong_encoding"

    def read(self, spec: DatasetSpec, *, with_image: bool = True) -> Sample:
        """Read the sample.

        Raises:
            BadSample: If the image file is missing, or the sample was unusable when it was listed.
        """
        if self.problem:
            raise self.problem
        if self.reason:
            raise BadSample("wrong_encoding", printable(self.image))
        texts = require_captions(spec, self.texts, self.image)
        if spec.label_key and self.label is None:
            raise BadSample("missing_label", self.image)
        image = read_image_file(self.image) if with_image else b""
        return Sample(self.key, uid_of(self.key), image, texts, self.label, self.image, columns=self.columns)


def entry_of_rows(
    name: object, rows: list[Row | BadSample], image_root: str, spec: DatasetSpec, path: str
) -> ImageEntry:
    """Create the entry of an image from all its rows in a table.

    Args:
        name: Value that names the image.
        rows: Its rows. A bad row comes alone.
        image_root: Folder of the images.
        spec: Locations of the parts of a sample.
        path: Path of the table, for messages.
    """
    first = rows[0]
    if isinstance(first, BadSample):
        return ImageEntry("", first.where, problem=first)
    if not isinstance(name, str) or not name:
        return ImageEntry("", path, problem=BadSample("missing_image", path))
    image = files.join_inside(image_root, name)
    if image is None:
        return ImageEntry(name, name, problem=BadSample("unsafe_path", name))

    def value_at(row: Row, location: str) -> object:
        return _checked(field_of(row, location), image)

    def read(location: str) -> list[str]:
        captions = []
        for row in cast("list[Row]", rows):
            captions += captions_at(location, partial(value_at, row), spec, image)
        return captions

    try:
        texts = captions_of(spec, read, image)
        label = spec.label_of(field_of(first, spec.label_key), image) if spec.label_key else None
        columns = read_columns(spec, partial(value_at, first), image)
    except BadSample as bad:
        return ImageEntry(name, image, problem=bad)
    return ImageEntry(name, image, texts, label, columns=columns)


def _checked(value: object, where: str) -> object:
    """Check that the value of a cell was UTF-8. Other bytes are read as half surrogates."""
    values = value if isinstance(value, list) else [value]
    if not all(is_unicode(item) for item in values if isinstance(item, str)):
        raise BadSample("wrong_encoding", where)
    return value


def write_image_lists(directory: Path, entries: Iterable[ImageEntry], spec: DatasetSpec) -> Iterator[Shard]:
    """Write image lists as shards, and yield each when it is written.

    The files are `images-00000.parquet`, ... with 10,000 entries each.

    Args:
        directory: Folder of the shards.
        entries: The images.
        spec: Locations of the parts of a sample.

    Raises:
        UserError: If the address of an image has credentials. They would stay in the list.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Types are given, as a list of images without labels or problems has columns of nulls only.
    fields = {"key": pa.string(), "image": pa.string(), "label": pa.int32(), "reason": pa.string()}
    if spec.columns:
        fields["columns"] = pa.string()
    for language in spec.texts:
        fields[f"texts.{language}"] = pa.list_(pa.string())
    for number, listed in enumerate(_chunks(distinct(entries))):
        images = []
        records = []
        for entry in listed:
            row = _without_credentials(entry) if entry.reason else entry
            images.append(row.image)
            records.append(_record(row, spec))
        check_addresses(images)
        path = directory / f"images-{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(records, pa.schema(fields)), path, write_page_checksum=True)
        yield Shard.of(path, len(records), format="files")


def _record(row: ImageEntry, spec: DatasetSpec) -> dict[str, object]:
    record: dict[str, object] = {
        "key": printable(row.key),
        "image": printable(row.image),
        "label": row.label,
        "reason": row.reason,
    }
    if spec.columns:
        record["columns"] = json.dumps(dict(row.columns))
    for language in spec.texts:
        record[f"texts.{language}"] = [] if row.reason else row.texts.get(language, [])
    return record


def _without_credentials(entry: ImageEntry) -> ImageEntry:
    """Mask the credentials in the name of an unusable image. The name is only shown."""
    return replace(entry, key=redacted(entry.key), image=redacted(entry.image))


def distinct(entries: Iterable[ImageEntry]) -> Iterator[ImageEntry]:
    """Make the keys of entries distinct.

    A second `a`, from another folder or another row of a table, becomes `a#2`.
    """
    seen: Counter[str] = Counter()
    for entry in entries:
        seen[entry.key] += not entry.problem  # unusable entries do not use up a key
        count = seen[entry.key]
        yield replace(entry, key=f"{entry.key}#{count}") if count > 1 else entry


def _chunks(entries: Iterable[ImageEntry]) -> Iterator[list[ImageEntry]]:
    iterator = iter(entries)
    while chunk := list(islice(iterator, ROWS_PER_SHARD)):
        yield chunk


class ImageListShard(ShardReader):
    """A list of image files. The list is in memory, and images are opened when their samples are read."""

    format = "files"

    def __init__(self, path: str, spec: DatasetSpec, name: str | None = None) -> None:
        super().__init__(path, spec, name)
        names = ["key", "image", "label", "reason", *(f"texts.{language}" for language in spec.texts)]
        if spec.columns:
            names.append("columns")
        self.table = read_parquet(path, names)

    @classmethod
    def files_behind(cls, path: str) -> list[str]:
        """List the shard and the image files in it."""
        return [path, *read_parquet(path, ["image"])["image"].to_pylist()]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def key(self, row: int) -> str:
        """Look up the key of a row's sample."""
        return str(self.table["key"][row].as_py())

    def where(self, row: int) -> str:
        """Look up the image file of a row, or the address of an unreadable row in a table."""
        return str(self.table["image"][row].as_py())

    def image_file(self, row: int) -> str | None:
        """Look up the image file of a row, None if the row is unusable."""
        return None if self.table["reason"][row].as_py() else self.where(row)

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """Read the sample of a row.

        Raises:
            BadSample: If the image file is missing, or the sample was unusable when it was listed.
        """
        key = self.table["key"][row].as_py()
        image = self.table["image"][row].as_py()
        label = self.table["label"][row].as_py()
        reason = self.table["reason"][row].as_py()
        texts = {language: self.table[f"texts.{language}"][row].as_py() for language in self.spec.texts}
        problem = BadSample(reason, image) if reason else None
        columns = json.loads(self.table["columns"][row].as_py()) if self.spec.columns else {}
        entry = ImageEntry(key, image, texts, label, problem, columns)
        return entry.read(self.spec, with_image=with_image)

    def records(self, rows: Sequence[int], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the columns of each row that the data's stage names."""
        require_column(self.spec, column_name(names[0]), self.path)
        for row in rows:
            yield json.loads(self.table["columns"][row].as_py() or "{}")

    def texts(self, rows: Rows, on_bad: OnBad) -> pa.Table:
        """Read the texts of ascending rows in the schema `texts_schema`. Bad samples have no texts."""
        read = partial(self.read, with_image=False)
        if not self.spec.texts or self.spec.label_key or self.spec.columns:
            return texts_by_sample(read, rows, on_bad)
        # The captions were checked when the list was written, so all of them are plain columns.
        table = self.table.take(rows)
        columns = {language: one_array(table[f"texts.{language}"]) for language in self.spec.texts}
        return texts_by_column(read, rows, columns, columns, lambda good: uids_of(table["key"].filter(good)), on_bad)


def printable(name: str) -> str:
    """Convert a file name to valid text. Bytes that are not UTF-8 are written as escapes."""
    if name.isascii():
        return name
    return name.encode("utf-8", "backslashreplace").decode()


def read_image_file(path: str) -> bytes:
    """Read the bytes of an image file.

    Raises:
        BadSample: If the file cannot be read.
    """
    try:
        return files.read_bytes(path)
    except RemoteError as error:
        raise BadSample("missing_image" if error.final else UNREACHABLE, path) from error
    except (OSError, ValueError):  # ValueError: a character that no path can have
        raise BadSample("missing_image", path) from None
    except Exception:
        if not files.is_remote(path):
            raise
        raise BadSample("missing_image", path) from None  # file systems of fsspec raise errors of many types
