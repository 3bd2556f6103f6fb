"""Find the Parquet files of each split in a folder of the Hugging Face hub."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from vfm.base import UserError
from vfm.storage import files

EXTENSION = ".parquet"
USUAL = ("train", "test", "val", "validation", "valid")
FILE = re.compile(rf"/(?:({'|'.join(USUAL)})-|([\w.]+)-\d{{5}}-of-\d{{5}})[^/]*$")
SUBFOLDER = "data"  # of the files, in a downloaded repository
DEFAULT = "test"  # split of a stage for labelled images whose user chose none


def hub_files(folder: str, names: Sequence[str], split: str | None = None) -> list[str]:
    """List the Parquet files in a folder, or in its subfolder `data`, of one split.

    Args:
        folder: Folder of the files, or of a downloaded repository.
        names: Names of its files.
        split: Split to use if there are several. Default: the only split.

    Returns:
        The files. The list is empty if there are none.

    Raises:
        UserError: If the files are of several splits, and none of them was chosen, or of another split only.
    """
    tables = _tables(folder, names)
    splits = _by_split(tables)
    if len(splits) < 2 and (not splits or split in (None, DEFAULT, *splits)):
        return tables
    if split in splits:
        return splits[split]
    problem = f"of {len(splits)} splits" if split in (None, DEFAULT) else f"without a split {split!r}"
    patterns = [f"'{paths[0].rpartition('/')[0]}/{name}-*.parquet'" for name, paths in splits.items()]
    raise UserError(f"{folder}: Parquet {problem}; give the files of one, {' or '.join(patterns)}")


def hub_splits(folder: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Map each split to its Parquet files in a folder, or else in its subfolder `data`."""
    return _by_split(_tables(folder, names))


def _by_split(tables: Sequence[str]) -> dict[str, list[str]]:
    """Map each split to its files. Unusual names, such as `part`, count as splits only if there is a usual one."""
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for path in tables:
        found = FILE.search(path)
        if found:
            splits[found[1] or found[2]].append(path)
    return {} if splits.keys().isdisjoint(USUAL) else dict(splits)


def _tables(folder: str, names: Sequence[str]) -> list[str]:
    """List the Parquet files in a folder, or else the files of splits in its subfolder `data`.

    A subfolder with other Parquet files may be a part of a folder of images.
    """
    root = folder.rstrip("/")
    tables = [f"{root}/{name}" for name in sorted(names) if name.endswith(EXTENSION)]
    if tables or not files.is_directory(f"{root}/{SUBFOLDER}"):
        return tables
    root = f"{root}/{SUBFOLDER}"
    tables = [f"{root}/{name}" for name in sorted(files.names_in(root)) if name.endswith(EXTENSION)]
    return tables if all(map(FILE.search, tables)) else []
