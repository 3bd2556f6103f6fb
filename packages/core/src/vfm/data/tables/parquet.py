"""Parquet or Arrow with image bytes in a column: img2dataset's output, Hugging Face datasets, CLIP tables.

A parquet file is read one row group at a time, so reading a sample reads a whole row group unless the group is in
memory. Random access is fast with small row groups (about a hundred images), but not with large row groups. Samples are
read from an Arrow copy of the file if its index has one (`arrow_copy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.data.reading.recent_groups import RecentGroups
from vfm.data.samples.arrays import one_array
from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.captions import captions_at, captions_of, field_of
from vfm.data.samples.columns import read_columns
from vfm.data.samples.sample import UNREACHABLE, BadSample, Sample, raise_if_unreachable, uid_from
from vfm.data.samples.shards import Opening, Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.samples.texts import Rows, is_text
from vfm.data.samples.values import plain_columns
from vfm.data.tables.arrow_files import ArrowFile, open_copy
from vfm.data.tables.column_texts import ColumnTexts
from vfm.data.tables.image_columns import holds_image, image_bytes, image_column
from vfm.data.tables.parquet_files import DAMAGE, open_parquet
from vfm.storage.store_files import reading


class ParquetShard(ColumnTexts):
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
            image = image_bytes(value, self.root, where)
        if not isinstance(url, str) or not url:
            url = None
        return Sample(key, uid_from(uid, key), image, texts, label, url, columns=columns)

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


def _value(scalar: Any, where: str) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise BadSample("wrong_encoding", where) from None
