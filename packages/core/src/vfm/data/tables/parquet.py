"""Parquet or Arrow with image bytes in a column: img2dataset's output, Hugging Face datasets, CLIP tables.

A parquet file is read one row group at a time, so reading a sample reads a whole row group unless the group is in
memory. Random access is fast with small row groups (about a hundred images), but not with large row groups. Samples are
read from an Arrow copy of the file if its index has one (`arrow_copy`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.reading.byte_ranges import RangeFile
from vfm.data.reading.recent_groups import RecentGroups
from vfm.data.samples.arrays import one_array
from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.captions import captions_at, captions_of, field_of
from vfm.data.samples.columns import read_columns
from vfm.data.samples.sample import UNREACHABLE, BadSample, Sample, given_uid, raise_if_unreachable, uid_from
from vfm.data.samples.shards import Opening, Shard, ShardReader
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
from vfm.data.samples.values import plain_columns
from vfm.data.tables.arrow_files import ArrowFile, open_copy
from vfm.data.tables.image_list import read_image_file
from vfm.storage import files
from vfm.storage.remote_spans import RemoteError
from vfm.storage.store_files import reading

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img")
ROWS_AT_A_TIME = 1 << 18  # rows of a row group whose texts are converted together
BYTES_AT_A_TIME = 1 << 18  # of a column of a local file
DAMAGE = (OSError, pa.ArrowException)  # raised by a row group that is damaged


class ParquetShard(ShardReader):
    """A parquet file with image bytes, or with captions only if the spec says so. Then no image can be read."""

    format = "parquet"

    def __init__(self, path: str, spec: DatasetSpec, name: str | None = None) -> None:
        """Read the file's footer.

        Args:
            path: Path of the file.
            spec: Parts to read of a row.
            name: Unique name of the file within its dataset, for keys. Default: its file name.

        Raises:
            UserError: If the file is not parquet, or lacks a column that the spec names.
        """
        super().__init__(path, spec, name)
        self.name = self.name.removesuffix(".parquet").removesuffix(".arrow")
        self.root = spec.image_root or path.rpartition("/")[0] or "."
        self.file = open_parquet(path)
        names = self.file.schema_arrow.names
        self.image = image_column(names, spec.image_key, path) if spec.images else None
        if self.image:
            kind = self.file.schema_arrow.field(self.image).type
            if not holds_image(kind):
                expected = "expected the bytes of one image, or {bytes, path}"
                raise UserError(f"{path}: column '{self.image}': {expected}, got {kind!s:.60}")
        self.sources = [*spec.texts.values()]
        if spec.label_key:
            self.sources.append(spec.label_key)
        if spec.images:  # without images no loss reads them, and a filter may find them missing
            self.sources += spec.columns
        roots = set(columns_of(self.sources))
        missing = sorted(roots - set(names))
        if missing:
            raise UserError(f"{path}: no column '{missing[0]}'; the columns are {', '.join(names)}")
        self.texts_only = sorted(roots | ({"key", "uid", "url"} & set(names)))
        metadata = self.file.metadata
        self.ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        self._groups = RecentGroups()
        self.copy: ArrowFile | None = None
        self._damaged: set[tuple[int, bool]] = set()  # row groups that cannot be read, with the image or without it

    @classmethod
    def open(cls, shard: Shard, spec: DatasetSpec, opening: Opening = Opening()) -> Self:  # noqa: B008 (frozen)
        """Open a table."""
        reader = cls(shard.path, spec, opening.name)
        reader._groups = opening.groups or reader._groups
        if opening.copy:
            reader.copy = open_copy(opening.copy, shard.num_samples)
        return reader

    @classmethod
    def find(cls, path: str) -> tuple[Shard, bool]:
        """Find the shard at a path. The footer of the file has the number of samples."""
        return Shard.of(path, open_parquet(path).metadata.num_rows, format=cls.format), True

    @classmethod
    def is_read(cls, *, scanned: bool) -> bool:
        """Return False, because samples are not read for the index. Their number is known."""
        return False

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    def own_keys(self, num_keys: int) -> list[str]:
        """Read the first keys. If rows have a `uid`, or are named after their file, there are none."""
        names = self.file.schema_arrow.names
        if "key" not in names or "uid" in names:
            return []
        for batch in self.file.iter_batches(num_keys, columns=["key"]):
            return [str(key) for key in batch["key"].to_pylist() if key is not None]
        return []

    def urls(self, rows: NDArray[np.integer[Any]]) -> pa.Array:
        """Read the column `url` of rows, null if it is missing or not text."""
        schema = self.file.schema_arrow
        if "url" not in schema.names or not is_text(schema.field("url").type):
            return pa.nulls(len(rows), pa.string())
        return one_array(self.file.read(columns=["url"])["url"]).take(pa.array(rows)).cast(pa.string())

    def records(self, rows: Sequence[int], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield these columns of each row."""
        columns = self.file.schema_arrow.names
        if names[0] not in columns:
            raise UserError(f"{self.path}: no column '{names[0]}'; the columns are {', '.join(columns)}")
        wanted = set(rows)
        start = 0
        for group in range(self.file.metadata.num_row_groups):
            with reading(self.path, "Parquet"):
                table = self.file.read_row_group(group, columns=[name for name in columns if name in names])
                records = table.to_pylist()
            for row, record in enumerate(records, start):
                if row in wanted:
                    yield record
            start += len(records)

    def values(self, rows: Rows, locations: Sequence[str]) -> pa.Table:
        """Read columns, or fields of columns of structs, of ascending rows. Damaged row groups are null."""
        schema = self.file.schema_arrow
        roots = sorted({location.split(".", 1)[0] for location in locations})
        for root in roots:
            if root not in schema.names:
                raise UserError(f"{self.path}: no column {root!r}; the columns are {', '.join(schema.names)}")
        parts = [schema.empty_table().select(roots)]
        for group, begin, inside in self._rows_by_group(rows):
            try:
                table = self.file.read_row_group(group, columns=roots)
            except DAMAGE:
                nulls = [pa.nulls(len(inside), schema.field(root).type) for root in roots]
                parts.append(pa.table(nulls, names=roots))
                continue
            parts.append(table if len(inside) == len(table) else table.take(inside - begin))
        return plain_columns(pa.concat_tables(parts), locations)

    def key(self, row: int) -> str:
        """Look up the key in the `key` column, or build it from the file's name and the row.

        The column is not used in damaged row groups, or if its values repeat in the dataset.
        """
        if self.spec.keys_repeat or "key" not in self.texts_only:
            return self._name(row)
        group, offset = self._locate(row)
        try:
            table = self._group(group, False)
        except BadSample as bad:
            raise_if_unreachable(bad)
            return self._name(row)
        return self._key_or_name(table["key"][offset].as_py(), row)

    def where(self, row: int) -> str:
        """Format the sample's address for messages, from the file and the key."""
        return f"{self.path}:{self.key(row)}"

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """Read the sample of a row.

        Raises:
            BadSample: The image, the caption or the label is missing or unusable, or the row group is damaged.
        """
        where = f"{self.path}: row {row}"
        table, offset = self._table(row, with_image)
        record = {name: table[name][offset] for name in table.schema.names}

        def value_at(source: str) -> object:
            name = source.split(".", 1)[0]
            if name not in record:
                return None
            return field_of({name: _value(record[name], where)}, source)

        texts = captions_of(self.spec, lambda location: captions_at(location, value_at, self.spec, where), where)
        label = self.spec.label_of(value_at(self.spec.label_key), where) if self.spec.label_key else None
        columns = read_columns(self.spec, value_at, where) if self.spec.images else {}
        uid = value_at("uid")
        url = value_at("url")
        key = self._key_or_name(value_at("key"), row)  # BadSample for a key that is not UTF-8
        image = b""
        if with_image:
            value = _value(record[self.image], where) if self.image else None
            image = _image_bytes(value, self.root, where)
        if not isinstance(url, str) or not url:
            url = None
        return Sample(key, uid_from(uid, key), image, texts, label, url, columns=columns)

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """Read the texts of ascending rows in the schema `texts_schema`, by column if the types are plain."""
        read = partial(self.read, with_image=False)
        needed = [name for name in self.texts_only if name != "url"]
        spec = self.spec
        if not spec.texts or spec.label_key or (spec.columns and spec.images) or not self._has_plain(needed):
            return texts_by_sample(read, rows, on_bad)
        parts = []
        for group, begin, inside in self._rows_by_group(rows):
            try:
                table = self._read_until(int(inside[-1]) - begin, group, needed)
            except DAMAGE:
                parts.append(texts_by_sample(read, inside, on_bad))  # reports each row with its row group
                continue
            for first in range(0, len(inside), ROWS_AT_A_TIME):
                some = inside[first : first + ROWS_AT_A_TIME]
                part = _rows(table, some - begin)
                columns: dict[str, Any] = {}
                for name in needed:
                    columns.update(_leaves(name, one_array(part[name])))
                texts = {language: columns[source] for language, source in self.spec.texts.items()}
                parts.append(texts_by_column(read, some, texts, columns, partial(self._uids, columns, some), on_bad))
        # An empty table would be a chunk of its own, and readers copy a column of several chunks.
        return pa.concat_tables(parts) if parts else texts_schema().empty_table()

    def _read_until(self, last: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Read columns of a row group, or only its first rows if the last row is among them.

        Damage behind these is then not found.
        """
        if 8 * last < self.file.metadata.row_group(group).num_rows:
            batches: list[pa.RecordBatch] = []
            for batch in self.file.iter_batches(last + 1, row_groups=[group], columns=columns):
                batches.append(batch)
                if sum(map(len, batches)) > last:
                    return pa.Table.from_batches(batches)
        return self.file.read_row_group(group, columns=columns)

    def _rows_by_group(self, rows: Rows) -> Iterator[tuple[int, int, Rows]]:
        """Yield the number, the first row and the selected rows of each row group that has some of the rows."""
        for group, end in enumerate(self.ends.tolist()):
            begin = end - self.file.metadata.row_group(group).num_rows
            inside = rows[slice(*np.searchsorted(rows, [begin, end]))]
            if len(inside):
                yield group, begin, inside

    def _has_plain(self, names: Sequence[str]) -> bool:
        """Check whether `texts_by_column` supports these columns and fields of structs, and has all captions."""
        locations = set()
        for name in names:
            kind = self.file.schema_arrow.field(name).type
            if pa.types.is_struct(kind) and name in ("key", "uid"):  # no name of a sample
                return False
            for location, leaf in _leaves(name, pa.array([], kind)):
                is_uid = location == "uid" and pa.types.is_fixed_size_binary(leaf.type)
                if location in locations or not (is_uid or is_plain(leaf.type)):
                    return False
                locations.add(location)
        return set(self.spec.texts.values()) <= locations

    def _uids(self, columns: Mapping[str, Any], rows: Rows, good: NDArray[np.bool_]) -> Any:
        """Compute the uids of the rows in a mask from the column `uid`, or from the keys."""
        # As in `read`, a uid is a text, an integer or bytes. An empty one, or another type of value, counts as missing.
        uids = columns["uid"] if "uid" in columns else pa.nulls(len(good))
        if not good.all():
            uids = uids.filter(pa.array(good))
        if pa.types.is_dictionary(uids.type):
            uids = uids.dictionary_decode()
        if pa.types.is_fixed_size_binary(uids.type):
            uids = pa.array(map(given_uid, uids.to_pylist()), pa.string())
        if is_text(uids.type) or pa.types.is_integer(uids.type):
            uids = uids.cast(pa.string())
        else:
            uids = pa.nulls(len(uids), pa.string())
        empty = pc.equal(uids, "")
        if pc.any(empty).as_py():  # replacing copies all
            uids = pc.if_else(empty, None, uids)
        if not uids.null_count:
            return uids
        lacking = good.nonzero()[0][uids.is_null().to_numpy(zero_copy_only=False)]
        has_keys = "key" in columns and not self.spec.keys_repeat
        keys: list[object] = [None] * len(lacking)
        if has_keys:
            keys = columns["key"].take(lacking).to_pylist()
        names = []
        for row, key in zip(rows[lacking].tolist(), keys, strict=True):
            names.append(self._name(row) if key is None else str(key))
        return pc.replace_with_mask(uids, uids.is_null(), uids_of(names))

    def _key_or_name(self, key: object, row: int) -> str:
        """Choose the key of a row from the value of its column, or build it if that is missing or repeats."""
        return self._name(row) if key is None or self.spec.keys_repeat else str(key)

    def _name(self, row: int) -> str:
        return f"{self.name}/{row:08d}"

    def _locate(self, row: int) -> tuple[int, int]:
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    def _table(self, row: int, with_image: bool) -> tuple[pa.Table | pa.RecordBatch, int]:
        """Find a table that has a row, and the row's place in it."""
        if self.copy and with_image:
            batch, offset = self.copy.locate(row)
            if batch[self.image][offset].is_valid:  # else the row has no image, or its row group is damaged
                return batch, offset
        group, offset = self._locate(row)
        return self._group(group, with_image), offset

    def _group(self, group: int, with_image: bool) -> pa.Table:
        """Read a row group, unless it is still in memory. One with images has the other columns too."""
        for has_image in (with_image, True):
            table = self._groups.get((self.path, group, has_image))
            if table is not None:
                return table
        table = self.read_group(group, with_image=with_image)
        self._groups.keep((self.path, group, with_image), table)
        return table

    def columns(self, *, with_image: bool) -> list[str]:
        """List the columns of a sample."""
        if with_image and self.image and self.image not in self.texts_only:
            return [*self.texts_only, self.image]
        return self.texts_only

    def read_group(self, group: int, *, with_image: bool) -> pa.Table:
        """Read the columns of samples in a row group.

        Raises:
            BadSample: If the row group is damaged, or is remote and cannot be read.
        """
        where = f"{self.path}: row group {group}"
        if (group, with_image) in self._damaged:
            raise BadSample("unreadable_row", where)
        try:
            return self.file.read_row_group(group, columns=self.columns(with_image=with_image))
        except UserError as error:
            raise BadSample(UNREACHABLE, where) from error
        except DAMAGE:
            self._damaged.add((group, with_image))
            raise BadSample("unreadable_row", where) from None


class _RemoteTable(RangeFile):
    """A remote file whose missing bytes are not taken for damage, which readers of all rows pass over."""

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes.

        Raises:
            UserError: If the bytes cannot be read.
        """
        try:
            return super().read(size)
        except RemoteError as error:
            raise UserError(str(error)) from None


def _rows(table: pa.Table, rows: Rows) -> pa.Table:
    """Take ascending rows of a table, without a copy if they are adjacent."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return table.slice(rows[0], len(rows))
    return table.take(rows)


def _leaves(location: str, column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """Yield a column with its location, or each field of a column of structs. Fields of a missing struct are null."""
    if not pa.types.is_struct(column.type):
        yield location, column
        return
    for index, field in enumerate(column.type):
        inner = field.name.replace(".", "\0")  # a location with a dot refers to a field of a struct
        yield from _leaves(f"{location}.{inner}", pc.struct_field(column, [index]))


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


def image_column(names: list[str], image_key: str | None, path: str) -> str:
    """Find the name of the image column.

    Args:
        names: Columns of the file.
        image_key: Configured name.
        path: Path of the file, for messages.

    Raises:
        UserError: If there is no image column.
    """
    candidates = [image_key] if image_key else list(IMAGE_COLUMNS)
    for name in candidates:
        if name in names:
            return name
    raise UserError(f"{path}: no image column '{image_key or 'image'}' (image_key); the columns are {', '.join(names)}")


def holds_image(kind: pa.DataType) -> bool:
    """Check whether a column of a type may have images.

    Images are bytes, or Hugging Face's `{bytes, path}`.
    """
    if pa.types.is_dictionary(kind):
        return holds_image(kind.value_type)
    return bool(is_bytes(kind) or pa.types.is_struct(kind) or pa.types.is_null(kind))


def has_image_bytes(kind: pa.DataType) -> bool:
    """Check whether a column of a type has bytes, alone or in Hugging Face's `{bytes, path}`."""
    return is_bytes(kind) or bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def is_bytes(kind: pa.DataType) -> bool:
    """Check whether a column of a type has bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _value(scalar: Any, where: str) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise BadSample("wrong_encoding", where) from None


def _image_bytes(value: object, root: str, where: str) -> bytes:
    """Read the bytes in a binary column, or in Hugging Face's `{bytes, path}` with a path in the folder `root`."""
    if isinstance(value, dict):
        name = value.get("path")
        value = value.get("bytes")
        if value is None and isinstance(name, str) and name:
            path = files.join_inside(root, name)
            if path is None:
                raise BadSample("unsafe_path", f"{where} ({name})")
            value = read_image_file(path)
    if not isinstance(value, bytes) or not value:
        raise BadSample("missing_image", where)
    return value
