"""Parquet or Arrow with the image's bytes in a column: img2dataset's output, Hugging Face datasets, CLIP tables.

A parquet file is read one row group at a time, so a sample costs a whole row group unless the group is in memory: small
row groups (about a hundred images) are fast at random access, large ones are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.samples.captions import captions_of, clean_captions, field_of
from vfm.data.samples.sample import BadSample, Sample, uid_from
from vfm.data.samples.shards import Shard, ShardReader
from vfm.data.samples.spec import DatasetSpec
from vfm.data.samples.texts import (
    OnBad,
    Rows,
    is_plain,
    is_text,
    texts_by_column,
    texts_by_sample,
    texts_schema,
    uids_of,
)
from vfm.data.tables.arrow_files import ArrowFile
from vfm.data.tables.image_list import read_image_file
from vfm.storage import files
from vfm.storage.store_files import reading

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img")
GROUPS_IN_MEMORY = 4
ROWS_AT_A_TIME = 1 << 18  # rows of a row group whose texts are converted together
DAMAGE = (OSError, pa.ArrowException)  # raised by a row group that is damaged


class ParquetShard(ShardReader):
    """One parquet file with image bytes, or with captions only if the spec says so; then no image can be read."""

    format = "parquet"

    def __init__(self, path: str, spec: DatasetSpec, name: str | None = None) -> None:
        """Read the file's footer.

        Args:
            path: path of the file.
            spec: parts to read of a row.
            name: unique name of the file within its dataset, for keys; default: its file name.

        Raises:
            UserError: the file is not parquet, or lacks a column that the spec names.
        """
        super().__init__(path, spec, name)
        self.name = self.name.removesuffix(".parquet").removesuffix(".arrow")
        self.root = spec.image_root or path.rpartition("/")[0] or "."
        self.file = open_parquet(path)
        names = self.file.schema_arrow.names
        self.image = image_column(names, spec.image_key, path) if spec.images else None
        if self.image and not holds_image(kind := self.file.schema_arrow.field(self.image).type):
            raise UserError(
                f"{path}: column '{self.image}': expected the bytes of one image, or {{bytes, path}}, got {kind!s:.60}"
            )
        self.sources = [*spec.texts.values(), *([spec.label_key] if spec.label_key else [])]
        roots = {source.partition(".")[0] for source in self.sources}
        if missing := sorted(roots - set(names)):
            raise UserError(f"{path}: no column '{missing[0]}'; the columns are {', '.join(names)}")
        self.texts_only = sorted(roots | ({"key", "uid", "url"} & set(names)))
        metadata = self.file.metadata
        self.ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        self._group = lru_cache(GROUPS_IN_MEMORY)(self._read_group)
        self._damaged: set[tuple[int, bool]] = set()  # row groups that cannot be read, with the image or without it

    @classmethod
    def find(cls, path: str) -> tuple[Shard, bool]:
        """Return the file at a path, whose footer has the number of samples."""
        return Shard.of(path, open_parquet(path).metadata.num_rows, format=cls.format), True

    @classmethod
    def is_read(cls, *, scanned: bool) -> bool:
        """Return False: the number of samples is known."""
        return False

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    def own_keys(self, num_keys: int) -> list[str]:
        """Return the first keys; none if rows have a `uid`, or are named by their file."""
        names = self.file.schema_arrow.names
        if "key" not in names or "uid" in names:
            return []
        batch = next(self.file.iter_batches(num_keys, columns=["key"]), None)
        return [str(key) for key in batch["key"].to_pylist() if key is not None] if batch else []

    def urls(self, rows: NDArray[np.integer[Any]]) -> pa.Array:
        """Return the column `url` of rows, null if it is missing or no text."""
        schema = self.file.schema_arrow
        if "url" not in schema.names or not is_text(schema.field("url").type):
            return pa.nulls(len(rows), pa.string())
        return self.file.read(columns=["url"])["url"].combine_chunks().take(pa.array(rows)).cast(pa.string())

    def records(self, rows: Sequence[int], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield these columns of each row."""
        columns = self.file.schema_arrow.names
        if names[0] not in columns:
            raise UserError(f"{self.path}: no column '{names[0]}'; the columns are {', '.join(columns)}")
        wanted, start = set(rows), 0
        for group in range(self.file.metadata.num_row_groups):
            with reading(self.path, "Parquet"):
                found = self.file.read_row_group(group, columns=[name for name in columns if name in names]).to_pylist()
            yield from (record for row, record in enumerate(found, start) if row in wanted)
            start += len(found)

    def key(self, row: int) -> str:
        """Return the value of the `key` column, else the file's name and the row, also in a damaged row group.

        A `key` column whose values repeat in the dataset is not used.
        """
        if self.spec.keys_repeat:
            return self._name(row)
        group, place = self._locate(row)
        try:
            table = self._group(group, False)
        except BadSample:
            return self._name(row)
        if "key" in table.column_names and (key := table["key"][place].as_py()) is not None:
            return str(key)
        return self._name(row)

    def where(self, row: int) -> str:
        """Return the sample's address for messages: the file and the key."""
        return f"{self.path}:{self.key(row)}"

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """Read the sample of a row.

        Raises:
            BadSample: the image, the caption or the label is missing or unusable, or the row group is damaged.
        """
        where = f"{self.path}: row {row}"
        group, place = self._locate(row)
        table = self._group(group, with_image)
        record = {name: table[name][place] for name in table.column_names}

        def value_at(source: str) -> object:
            name = source.partition(".")[0]
            return field_of({name: _value(record[name], where)}, source) if name in record else None

        texts = captions_of(self.spec, lambda source: clean_captions(value_at(source), where), where)
        label = self.spec.label_of(value_at(self.spec.label_key), where) if self.spec.label_key else None
        uid, url, _ = (value_at(name) for name in ("uid", "url", "key"))  # the last: raises where `key` would not
        key = self.key(row)
        picture = _value(record[self.image], where) if self.image and with_image else None
        image = _image_bytes(picture, self.root, where) if with_image else b""
        return Sample(key, uid_from(uid, key), image, texts, label, url if isinstance(url, str) and url else None)

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """Return the texts of ascending rows in the schema `texts_schema`; by column if the types are plain."""
        read = partial(self.read, with_image=False)
        needed = [name for name in self.texts_only if name != "url"]
        if not self.spec.texts or self.spec.label_key or not self._has_plain(needed):
            return texts_by_sample(read, rows, on_bad)
        parts = [texts_schema().empty_table()]
        for group, end in enumerate(self.ends.tolist()):
            begin = end - self.file.metadata.row_group(group).num_rows
            inside = rows[(begin <= rows) & (rows < end)]
            if not len(inside):
                continue
            try:
                table = self.file.read_row_group(group, columns=needed)
            except DAMAGE:
                parts.append(texts_by_sample(read, inside, on_bad))  # reports each row, and names the row group
                continue
            for first in range(0, len(inside), ROWS_AT_A_TIME):
                some = inside[first : first + ROWS_AT_A_TIME]
                part = table.take(some - begin) if len(some) < len(table) else table
                columns = {name: part[name].combine_chunks() for name in needed}
                texts = {language: columns[source] for language, source in self.spec.texts.items()}
                parts.append(texts_by_column(read, some, texts, columns, partial(self._uids, columns, some), on_bad))
        return pa.concat_tables(parts)

    def _has_plain(self, names: Sequence[str]) -> bool:
        schema = self.file.schema_arrow
        return set(self.spec.texts.values()) <= set(names) and all(is_plain(schema.field(name).type) for name in names)

    def _uids(self, columns: Mapping[str, Any], rows: Rows, good: NDArray[np.bool_]) -> Any:
        """Return the uids of the rows in a mask: those of the column `uid`, or made from the keys."""
        # As in `read`: a uid is a text or an integer; an empty one, or one of another type, counts as missing.
        given = columns["uid"].filter(pa.array(good)) if "uid" in columns else pa.nulls(int(good.sum()))
        named = is_text(given.type) or pa.types.is_integer(given.type)
        given = given.cast(pa.string()) if named else pa.nulls(len(given), pa.string())
        given = pc.if_else(pc.equal(given, ""), None, given)
        if not given.null_count:
            return given
        lacking = good.nonzero()[0][given.is_null().to_numpy(zero_copy_only=False)]
        has_keys = "key" in columns and not self.spec.keys_repeat
        keys = columns["key"].take(lacking).to_pylist() if has_keys else [None] * len(lacking)
        rows = rows[lacking].tolist()
        names = [self._name(row) if key is None else str(key) for row, key in zip(rows, keys, strict=True)]
        return pc.replace_with_mask(given, given.is_null(), uids_of(names))

    def _name(self, row: int) -> str:
        return f"{self.name}/{row:08d}"

    def _locate(self, row: int) -> tuple[int, int]:
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    def _read_group(self, group: int, with_image: bool) -> Any:
        image = [self.image] if with_image and self.image and self.image not in self.texts_only else []
        columns = [*self.texts_only, *image]
        where = f"{self.path}: row group {group}"
        if (group, with_image) in self._damaged:
            raise BadSample("unreadable_row", where)
        try:
            return self.file.read_row_group(group, columns=columns)
        except DAMAGE:
            self._damaged.add((group, with_image))
            raise BadSample("unreadable_row", where) from None


def open_parquet(path: str) -> Any:
    """Open the parquet file at a path, or the Arrow file in the same form.

    Raises:
        UserError: the file is neither.
    """
    if path.lower().endswith(".arrow"):
        return ArrowFile(path)
    try:
        if not files.is_remote(path):
            return pq.ParquetFile(path)
        filesystem, inside = files.filesystem(path)
        return pq.ParquetFile(inside, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:  # the last: a name that is not UTF-8
        if getattr(error, "errno", None) is not None:  # an error of the system, not of the file's content
            raise
        raise UserError(f"{path}: not readable as parquet: {' '.join(str(error).split())}") from None


def features_of(path: str) -> dict[str, Any]:
    """Return the features of a table's columns that Hugging Face's `datasets` stores in its schema; else none."""
    metadata = open_parquet(path).schema_arrow.metadata or {}
    try:
        record: Any = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    found = field_of(record, "info.features")
    return found if isinstance(found, dict) else {}


def image_column(names: list[str], image_key: str | None, path: str) -> str:
    """Return the name of the image column.

    Raises:
        UserError: there is none.
    """
    candidates = [image_key] if image_key else list(IMAGE_COLUMNS)
    found = next((name for name in candidates if name in names), None)
    if found is None:
        raise UserError(
            f"{path}: no image column '{image_key or 'image'}' (image_key); the columns are {', '.join(names)}"
        )
    return found


def holds_image(kind: pa.DataType) -> bool:
    """Return whether a column of a type may have images: bytes, or Hugging Face's `{bytes, path}`."""
    if pa.types.is_dictionary(kind):
        return holds_image(kind.value_type)
    return bool(is_bytes(kind) or pa.types.is_struct(kind) or pa.types.is_null(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of a type has bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _value(scalar: Any, where: str) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise BadSample("wrong_encoding", where) from None


def _image_bytes(value: object, root: str, where: str) -> bytes:
    """Return the bytes of a binary column, or of Hugging Face's `{bytes, path}`, whose path is in the folder `root`."""
    if isinstance(value, dict):
        name = value.get("path")
        value = value.get("bytes")
        if value is None and isinstance(name, str) and name:
            if (path := files.join_inside(root, name)) is None:
                raise BadSample("unsafe_path", f"{where} ({name})")
            value = read_image_file(path)
    if not isinstance(value, bytes) or not value:
        raise BadSample("missing_image", where)
    return value
