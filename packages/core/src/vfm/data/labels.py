"""Class names of a labelled dataset: from a file beside it, from its schema, or from its labels."""

from __future__ import annotations

import json
from typing import Any

from vfm.config import UserError
from vfm.data.captions import field_of
from vfm.data.clip_benchmark import CLASS_NAMES_FILE, lines_beside
from vfm.data.folder import class_folders
from vfm.data.layout import Layout
from vfm.data.parquet import open_parquet
from vfm.data.table import table_values


def find_class_names(layout: Layout, label_key: str | None) -> list[str]:
    """Return the class names in the order of the labels.

    Raises:
        UserError: they are not given anywhere.
    """
    path = layout.paths[0]
    if layout.kind == "folder":
        return class_folders(path)[0]
    if names := lines_beside(path, CLASS_NAMES_FILE):
        if "" in names:
            raise UserError(f"{CLASS_NAMES_FILE} beside {path}: the name of class {names.index('')} is empty")
        return names
    if layout.kind in ("table", "parquet") and label_key:
        names = _from_schema(path, label_key) if path.endswith(".parquet") else []
        return names or _from_values(layout, label_key)
    raise UserError(f"{path}: no {CLASS_NAMES_FILE} beside it; give class_names, in the order of the labels")


def _from_schema(path: str, label_key: str) -> list[str]:
    """Return the names that Hugging Face's `datasets` writes into the schema."""
    metadata = open_parquet(path).schema_arrow.metadata or {}
    record: Any = json.loads(metadata.get(b"huggingface", b"{}"))
    names = field_of(record, f"info.features.{label_key}.names")
    return [str(name) for name in names] if isinstance(names, list) else []


def _from_values(layout: Layout, label_key: str) -> list[str]:
    values = {value for path in layout.paths for value in table_values(path, label_key)}
    words = {str(value) for value in values if value is not None}
    if not words or all(word.isdigit() for word in words):
        raise UserError(
            f"{layout.paths[0]}: the labels in '{label_key}' are numbers; give class_names, in the order of the labels"
        )
    return sorted(words)
