"""Recognise the columns of a table that have images, captions and labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from vfm.data.labeled.class_names import has_class_names
from vfm.data.layouts.layout import LABEL_COLUMNS, Layout
from vfm.data.samples.caption_templates import columns_of
from vfm.data.tables.image_columns import IMAGE_COLUMNS
from vfm.data.tables.table import (
    CAPTION_COLUMNS,
    LIST_EXTENSION,
    PATH_COLUMNS,
    table_columns,
    table_kind,
    table_rows,
    text_columns,
)
from vfm.flow.recognition.image_names import image_location, image_root

NUM_ROWS = 1000  # rows by which columns are recognised
CAPTION_WORDS = 2.5  # mean number of words of a column, from which it has captions and not names of classes
NOT_TEXTS = ("key", "uid", "url", "sha256", "md5", "status", "error_message", "exif", "id")


@dataclass
class _Table:
    """A table, of which the first rows are read when they are needed."""

    path: str
    image: str | None  # a column, or a template

    @cached_property
    def columns(self) -> list[str]:
        return table_columns(self.path)

    @cached_property
    def texts(self) -> list[str]:
        """Columns of text that may be captions or names of classes."""
        left_out = (*IMAGE_COLUMNS, *PATH_COLUMNS, *NOT_TEXTS, *columns_of(filter(None, [self.image])))
        return [name for name in text_columns(self.path) if name not in left_out]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        only = [name for name in self.columns if name != self.image]
        return [row for row in islice(table_rows(self.path, only=only), NUM_ROWS) if isinstance(row, dict)]

    def values(self, column: str) -> list[str]:
        return [str(row.get(column)) for row in self.rows]

    def words(self, column: str) -> float:
        """Compute the mean number of words in a column."""
        words = " ".join(self.values(column)).split()
        return len(words) / max(1, len(self.rows))

    def repeats(self, column: str) -> bool:
        """Check whether a column has a few values, several times each."""
        values = self.values(column)
        return 1 < len(set(values)) <= len(values) / 2

    def names_each(self, label: str, names: str) -> bool:
        """Check whether each label has one name, and each name one label."""
        labels = self.values(label)
        named = self.values(names)
        pairs = set(zip(labels, named, strict=True))
        return len(pairs) == len(set(labels)) == len(set(named))


def table_fields(layout: Layout) -> dict[str, Any]:
    """Choose the kind of stage that imports a table, and the columns that have no usual name."""
    path = layout.paths[0]
    if table_kind(path) == LIST_EXTENSION:
        return {"kind": "data.pairs"}
    image = image_location(path)
    table = _Table(path, image)
    fields: dict[str, Any] = {"image_key": image} if image not in (*PATH_COLUMNS, *IMAGE_COLUMNS, None) else {}
    root = image_root(path, image) if image else None
    if root and Path(path).parent in Path(root).parents:
        fields["image_root"] = root
    columns = set(table.columns)
    if not columns.isdisjoint(CAPTION_COLUMNS):
        return {"kind": "data.pairs", **fields}
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    if label and has_class_names(layout, label):
        return {"kind": "data.labeled", **fields}
    if label:
        for name in table.texts:
            if table.repeats(name) and table.names_each(label, name):
                return {"kind": "data.labeled", **fields, "label_key": name}
        return {"kind": "data.labeled", **fields}
    captions = max(table.texts, key=table.words, default="")
    if captions and table.words(captions) >= CAPTION_WORDS:
        return {"kind": "data.pairs", **fields, "texts": {"en": captions}}
    names = list(filter(table.repeats, table.texts))
    if image and names:
        return {"kind": "data.labeled", **fields, "label_key": names[0]}
    return {"kind": "data.pairs", **fields}
