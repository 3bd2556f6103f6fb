"""Find the column with the images of a table, and the folder that their names are relative to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.tables.delimited import is_image
from vfm.data.tables.image_columns import IMAGE_COLUMNS, has_image_bytes
from vfm.data.tables.parquet_files import open_parquet
from vfm.data.tables.table import LIST_EXTENSION, PATH_COLUMNS, image_name, table_columns, table_kind, table_rows
from vfm.storage import files

NUM_TRIED = 10  # images that are looked for
NUM_FOLDERS = 50  # folders in the table's folder that are looked into


def image_location(path: str) -> str | None:
    """Find the column of images.

    It has bytes, a usual name, or names of image files. For names without an extension, the template that completes
    them is found, such as `{image_id}.jpg`.
    """
    columns = table_columns(path)
    if any(map(is_image, columns)):  # a list of images without a header, whose reader needs no column
        return None
    if table_kind(path) == "parquet":
        schema = open_parquet(path).schema_arrow
        with_bytes: list[str] = [field.name for field in schema if has_image_bytes(field.type)]
        if with_bytes:
            return min(with_bytes, key=lambda name: name not in IMAGE_COLUMNS)  # a usual name first
    first = next(iter(_first_rows(path, columns)), {})
    usual = [name for name in PATH_COLUMNS if name in columns]
    others = [name for name in columns if name not in usual]
    for names in (usual, others):
        for name in names:
            if isinstance(first.get(name), str) and is_image(first[name]):
                return name
        completed = _completed(path, names)
        if completed:
            return completed
    return next(iter(usual), None)


def image_root(path: str, location: str | None = None) -> str | None:
    """Find the folder that the paths in a table are relative to.

    It tries `/` for absolute paths, the folders in and around the table's folder, and the working folder.

    Returns:
        The folder, or None if it is the table's, or unknown.
    """
    if table_kind(path) == LIST_EXTENSION or files.is_remote(path):
        return None
    location = location or image_location(path)
    if location is None:
        return None
    names = []
    for row in _first_rows(path, columns_of([location])):
        name = image_name(row, location)
        if isinstance(name, str):
            names.append(name)
    relative = [name for name in names if not name.startswith("/")]
    if not names or _any_exists(Path(path).parent, relative):
        return None
    if not relative:
        return "/" if _any_exists(Path("/"), names) else None
    for root in _roots(path):
        if _any_exists(root, names):
            return str(root)
    return None


def _any_exists(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).exists() for name in names)


def _completed(path: str, columns: list[str]) -> str | None:
    """Find the column and the extension that name images near a table."""
    if files.is_remote(path):
        return None
    rows = _first_rows(path, columns)
    for column in columns:
        stems = set()
        for row in rows:
            if isinstance(row.get(column), str | int):
                stems.add(str(row[column]))
        if len(stems) < len(rows):  # names of classes repeat
            continue
        for root in (Path(path).parent, *_roots(path)):
            for extension in IMAGE_EXTENSIONS:
                if any((root / f"{stem}.{extension}").is_file() for stem in stems):
                    return f"{{{column}}}.{extension}"
    return None


def _roots(path: str) -> Iterator[Path]:
    """List the folders in and around a table's folder, and the working folder."""
    folder = Path(path).parent
    subfolders = filter(Path.is_dir, folder.iterdir())
    yield from islice(sorted(subfolders), NUM_FOLDERS)
    yield from (folder.parent, folder.parent.parent, Path())


def _first_rows(path: str, columns: list[str]) -> list[dict[str, Any]]:
    return [row for row in islice(table_rows(path, only=columns), NUM_TRIED) if isinstance(row, dict)]
