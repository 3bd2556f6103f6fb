"""Recognise the columns of a table: images, captions, labels, and the folder that its paths are relative to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from vfm.data.labeled.class_names import has_class_names
from vfm.data.layouts.layout import LABEL_COLUMNS, Layout
from vfm.data.tables.delimited import is_image
from vfm.data.tables.parquet import IMAGE_COLUMNS, has_image_bytes, open_parquet
from vfm.data.tables.table import (
    CAPTION_COLUMNS,
    LIST_EXTENSION,
    PATH_COLUMNS,
    table_columns,
    table_kind,
    table_rows,
    text_columns,
)
from vfm.storage import files

NUM_ROWS = 1000  # rows by which columns are recognised
NUM_TRIED = 10  # images that are looked for
CAPTION_WORDS = 2.5  # mean number of words of a column, from which it has captions and not names of classes
NOT_TEXTS = ("key", "uid", "url", "sha256", "md5", "status", "error_message", "exif", "id")


@dataclass
class _Table:
    """A table, of which the first rows are read when they are needed."""

    path: str
    image: str | None

    @cached_property
    def columns(self) -> list[str]:
        return table_columns(self.path)

    @cached_property
    def texts(self) -> list[str]:
        """Columns of text that may be captions or names of classes."""
        left_out = (*IMAGE_COLUMNS, *PATH_COLUMNS, *NOT_TEXTS, self.image)
        return [name for name in text_columns(self.path) if name not in left_out]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        only = [name for name in self.columns if name != self.image]
        return [row for row in islice(table_rows(self.path, only=only), NUM_ROWS) if isinstance(row, dict)]

    def values(self, column: str) -> list[str]:
        return [str(row.get(column)) for row in self.rows]

    def words(self, column: str) -> float:
        """Compute the mean number of words in a column."""
        values = self.values(column)
        return sum(len(value.split()) for value in values) / max(1, len(values))

    def repeats(self, column: str) -> bool:
        """Check whether a column has a few values, several times each."""
        values = self.values(column)
        return 1 < len(set(values)) <= len(values) / 2

    def names_each(self, label: str, names: str) -> bool:
        """Check whether each label has one name, and each name one label."""
        pairs = set(zip(self.values(label), self.values(names), strict=True))
        return len(pairs) == len({label for label, _ in pairs}) == len({name for _, name in pairs})


def table_fields(layout: Layout) -> dict[str, Any]:
    """Choose the kind of stage that imports a table, and the columns that have no usual name."""
    path = layout.paths[0]
    if table_kind(path) == LIST_EXTENSION:
        return {"kind": "data.pairs"}
    image = _image_column(path)
    table = _Table(path, image)
    fields: dict[str, Any] = {"image_key": image} if image not in (*PATH_COLUMNS, *IMAGE_COLUMNS, None) else {}
    root = image_root(path, image) if image else None
    if root and Path(path).parent in Path(root).parents:
        fields["image_root"] = root
    if any(name in table.columns for name in CAPTION_COLUMNS):
        return {"kind": "data.pairs", **fields}
    label = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if label and has_class_names(layout, label):
        return {"kind": "data.labeled", **fields}
    if label:
        names = [name for name in table.texts if table.repeats(name) and table.names_each(label, name)]
        return {"kind": "data.labeled", **fields, **({"label_key": names[0]} if names else {})}
    captions = max(table.texts, key=table.words, default="")
    if captions and table.words(captions) >= CAPTION_WORDS:
        return {"kind": "data.pairs", **fields, "texts": {"en": captions}}
    names = [name for name in table.texts if table.repeats(name)]
    if image and names:
        return {"kind": "data.labeled", **fields, "label_key": names[0]}
    return {"kind": "data.pairs", **fields}


def image_root(path: str, column: str | None = None) -> str | None:
    """Find the folder that the paths in a table are relative to, if it is not the table's. None if it is, or unknown.

    Tried are `/` for absolute paths, the folders in and around the table's folder, and the working folder.
    """
    if table_kind(path) == LIST_EXTENSION or files.is_remote(path):
        return None
    column = column or _image_column(path)
    if column is None:
        return None
    values = [row.get(column) for row in islice(table_rows(path, only=[column]), NUM_TRIED) if isinstance(row, dict)]
    names = [value for value in values if isinstance(value, str)]
    folder = Path(path).parent
    if not names or any((folder / name).exists() for name in names if not name.startswith("/")):
        return None
    if all(name.startswith("/") for name in names):
        return "/" if any(Path(name).exists() for name in names) else None
    below = sorted(part for part in folder.iterdir() if part.is_dir())
    for root in (*below, folder.parent, folder.parent.parent, Path()):
        if any((root / name).exists() for name in names):
            return str(root)
    return None


def _image_column(path: str) -> str | None:
    """Find the column of images: of bytes, with a usual name, or with names of image files."""
    columns = table_columns(path)
    if table_kind(path) == "parquet":
        schema = open_parquet(path).schema_arrow
        with_bytes: list[str] = [field.name for field in schema if has_image_bytes(field.type)]
        if with_bytes:
            return min(with_bytes, key=lambda name: name not in IMAGE_COLUMNS)  # a usual name first
    first = next((row for row in table_rows(path) if isinstance(row, dict)), {})
    named = [name for name in PATH_COLUMNS if name in columns]
    by_value = [name for name in columns if isinstance(first.get(name), str) and is_image(first[name])]
    return next(iter([*named, *by_value]), None)
