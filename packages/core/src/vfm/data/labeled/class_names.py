"""Find class names in folders, in a file next to the images, in a schema, or in the values of a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, filterfalse, starmap

from vfm.base import UserError
from vfm.data.layouts.folder import class_folders
from vfm.data.layouts.layout import LABEL_COLUMNS, Layout
from vfm.data.prompts.clip_benchmark import CLASS_NAMES_FILE, lines_beside
from vfm.data.samples.captions import is_unicode
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.tables.fiftyone_labels import fiftyone_classes
from vfm.data.tables.image_columns import IMAGE_COLUMNS
from vfm.data.tables.parquet_files import schema_names
from vfm.data.tables.table import (
    CAPTION_COLUMNS,
    FIFTYONE,
    PATH_COLUMNS,
    find_column,
    table_columns,
    table_kind,
    table_values,
    text_columns,
)
from vfm.data.tar.scan import scan_tar
from vfm.storage import files


def find_class_names(layout: Layout, label_key: str | None) -> list[str]:
    """Find the class names in the order of the labels.

    Raises:
        UserError: If there are no class names.
    """
    path = layout.paths[0]
    if layout.kind == "folder":
        return class_folders(path)[0]
    in_column = _label_column(layout, label_key)
    names = lines_beside(path, CLASS_NAMES_FILE)
    if names and not (in_column and _are_all_others(_texts(layout.paths, in_column), names)):
        if "" in names:
            raise UserError(f"{CLASS_NAMES_FILE} next to {path}: the name of class {names.index('')} is empty")
        return names
    if in_column:
        names = []
        if table_kind(path) == "parquet":
            names = schema_names(path, in_column)
        elif table_kind(path) == FIFTYONE:
            names = fiftyone_classes(path)
        return names or _from_values(layout.paths, in_column)
    raise UserError(f"{path}: no {CLASS_NAMES_FILE} next to it; give class_names, in the order of the labels")


def has_class_names(layout: Layout, label_key: str | None) -> bool:
    """Check whether `find_class_names` finds them."""
    try:
        return bool(find_class_names(layout, label_key))
    except UserError:
        return False


def common_class_names(sets: Sequence[tuple[Layout, str | None]]) -> list[str]:
    """Find the class names of a training set that its validation set needs too.

    Labels that are numbers without names are named by the numbers. If both sets have the same names, the list is empty.

    Args:
        sets: Layout and location of the labels of the training set, and of the validation set if there is one.

    Raises:
        UserError: If the validation set has classes that the training set lacks.
    """
    named = []
    for layout, label_key in sets:
        named.append(find_class_names(layout, label_key) if has_class_names(layout, label_key) else [])
    if not any(named):
        largest = max(chain.from_iterable(starmap(_numbers, sets)), default=-1)
        return list(map(str, range(largest + 1)))
    train, *others = named
    for names in others:
        extra = [name for name in names if name not in train]
        if train and extra:
            where = sets[1][0].paths[0]
            count = len(extra)
            raise UserError(f"{where}: {count} of its classes are not in the training images, such as {extra[0]!r}")
    return [] if named.count(train) == len(named) else train


def _numbers(layout: Layout, label_key: str | None) -> Iterator[int]:
    """Yield the labels of a table's column, or of the `cls` files of tars, that are numbers."""
    if layout.kind == "webdataset":
        for path in layout.paths:
            places = scan_tar(path, ["image", "cls"], IMAGE_EXTENSIONS).places[:, 1].tolist()
            for start, size in places:
                text = files.read_bytes(path, start, start + size).decode() if start >= 0 else ""
                if _is_number(text.strip()):
                    yield int(text)
    key = _label_column(layout, label_key)
    if key:
        for value in _values(layout.paths, key):
            if isinstance(value, int | str) and _is_number(value):
                yield int(value)


def _label_column(layout: Layout, label_key: str | None) -> str | None:
    """Find the column of a table's labels. Other layouts have none.

    Raises:
        UserError: If there is no such column, or none of the usual names if it is not given.
    """
    if layout.kind not in ("table", "parquet"):
        return None
    path = layout.paths[0]
    return find_column(table_columns(path), label_key, LABEL_COLUMNS, "label_key", path)


def _from_values(paths: Sequence[str], label_key: str) -> list[str]:
    """Collect the distinct values of a column, sorted. Only texts and numbers can be class names."""
    values: set[str | float] = set()
    for value in _values(paths, label_key):
        if isinstance(value, str | int | float) and is_unicode(str(value)):
            values.add(value)
    if all(map(_is_number, values)):
        raise UserError(
            f"{paths[0]}: the labels in '{label_key}' are numbers; give class_names, in the order of the labels"
            f"{_columns_of_names(paths)}"
        )
    return sorted(set(map(str, values)))


def _columns_of_names(paths: Sequence[str]) -> str:
    """Name the text columns with repeated values, as the end of an error.

    They may be the names of the classes.
    """
    hints = []
    for column in text_columns(paths[0]):
        if column in (*IMAGE_COLUMNS, *PATH_COLUMNS, *CAPTION_COLUMNS):
            continue
        counts = Counter(_texts(paths, column))
        if 1 < len(counts) <= counts.total() / 2:
            hints.append(f"; the text column '{column}' has {len(counts):,} values: label_key: {column}")
    return "".join(hints)


def _are_all_others(texts: Iterable[str], names: Sequence[str]) -> bool:
    """Check whether a column names classes, none of which is among the names."""
    classes = set(filterfalse(_is_number, texts))
    return bool(classes) and classes.isdisjoint(names)


def _texts(paths: Sequence[str], column: str) -> Iterator[str]:
    return (value for value in _values(paths, column) if isinstance(value, str))


def _values(paths: Sequence[str], column: str) -> Iterator[object]:
    for path in paths:
        yield from table_values(path, column)


def _is_number(value: str | float) -> bool:
    return value.isdigit() if isinstance(value, str) else not isinstance(value, bool)
