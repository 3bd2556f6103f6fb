"""Find the Parquet files of each split in a folder of the Hugging Face hub."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from vfm.base import UserError
from vfm.storage import files

EXTENSION = ".parquet"
FILE = re.compile(r"/(train|test|val|validation|valid)-[^/]*$")
SUBFOLDER = "data"  # of the files, in a downloaded repository


def hub_files(folder: str, names: Sequence[str], split: str | None = None) -> list[str]:
    """List the Parquet files in a folder, or in its subfolder `data`, of one split.

    Args:
        folder: Folder of the files, or of a downloaded repository.
        names: Names of its files.
        split: Split to use if there are several. Default: the only split.

    Returns:
        The files. The list is empty if there are none.

    Raises:
        UserError: If the files are of several splits, and none of them was chosen.
    """
    splits = hub_splits(folder, names)
    if len(splits) < 2:
        return _tables(folder, names)
    if split in splits:
        return splits[split]
    patterns = [f"'{paths[0].rpartition('/')[0]}/{name}-*.parquet'" for name, paths in splits.items()]
    raise UserError(f"{folder}: Parquet of {len(splits)} splits; give the files of one, {' or '.join(patterns)}")


def hub_splits(folder: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Map each split to its Parquet files in a folder, or else in its subfolder `data`."""
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for path in _tables(folder, names):
        found = FILE.search(path)
        if found:
            splits[found[1]].append(path)
    return dict(splits)


def _tables(folder: str, names: Sequence[str]) -> list[str]:
    root = folder.rstrip("/")
    if not any(name.endswith(EXTENSION) for name in names) and files.is_directory(f"{root}/{SUBFOLDER}"):
        root = f"{root}/{SUBFOLDER}"
        names = files.names_in(root)
    return [f"{root}/{name}" for name in sorted(names) if name.endswith(EXTENSION)]
