"""Find the Parquet files of each split in a folder, as the Hugging Face hub names them, or as `train.parquet`."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence

from vfm.base import UserError
from vfm.storage import files

EXTENSION = ".parquet"
TRAIN = "train"
DEFAULT = "test"  # split of labelled images if none is set
TEST_SPLITS = (DEFAULT, "val", "validation", "valid")
# A usual name as a word: in `train.parquet`, `train_0.parquet` and `train-0.parquet`, not in `trainer.parquet`.
WORD = re.compile(rf"(?:{'|'.join((TRAIN, *TEST_SPLITS))})(?![^\W\d_])", re.IGNORECASE)
FILE = re.compile(rf"/(?:([\w.]+)-\d{{5}}-of-\d{{5}}|({WORD.pattern}))[^/]*$", re.IGNORECASE)
# A usual name anywhere in a name, as a word: `mnist_train.parquet`.
WITHIN = re.compile(rf"/[^/]*?(?<![^\W\d_])({WORD.pattern})[^/]*$", re.IGNORECASE)
SUBFOLDER = "data"  # of the files, in a downloaded repository


def tables_in(folder: str, names: Sequence[str]) -> list[str]:
    """List the Parquet files in a folder, or else the files of splits in its subfolder `data`.

    A subfolder with other Parquet files may be a part of a folder of images.

    Args:
        folder: Folder of the files, or of a downloaded repository.
        names: Names of its files.
    """
    root = folder.rstrip("/")
    tables = [f"{root}/{name}" for name in sorted(names) if name.endswith(EXTENSION)]
    if tables or not files.is_directory(f"{root}/{SUBFOLDER}"):
        return tables
    root = f"{root}/{SUBFOLDER}"
    tables = [f"{root}/{name}" for name in sorted(files.names_in(root)) if name.endswith(EXTENSION)]
    return tables if all(map(_has_hub_name, tables)) else []


def are_about_folders(tables: Sequence[str]) -> bool:
    """Check whether each file has a folder of its name next to it, as img2dataset writes them for folders of images."""
    return all(files.is_directory(path.removesuffix(EXTENSION)) for path in tables)


def by_split(tables: Sequence[str]) -> dict[str, list[str]]:
    """Map each split to its files. The result is empty if the names of the files have no splits.

    Unusual names such as `part-00000-of-00001` count as splits only next to a usual one, and those such as
    `train_en-00000-of-00001` also next to one that begins with another usual name. A usual name within a name, as in
    `mnist_train.parquet`, counts only if other files have another one there.
    """
    splits = _grouped(tables, FILE)
    words = {found[0].lower() for found in map(WORD.match, splits) if found}
    if len(words) > 1 or not words.isdisjoint(splits):
        return splits
    within = _grouped(tables, WITHIN)
    return within if len(within) > 1 else {}


def _grouped(tables: Sequence[str], name: re.Pattern[str]) -> dict[str, list[str]]:
    """Group files by the part of their names that the pattern captures. Usual names are in lower case."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for path in tables:
        found = name.search(path)
        if found:
            split = found[found.lastindex or 0]
            groups[split.lower() if WORD.fullmatch(split) else split].append(path)
    return dict(groups)


def only_split(tables: Sequence[str]) -> str | None:
    """Find the split of files that are all of the same one."""
    splits = by_split(tables)
    return next((name for name, paths in splits.items() if len(paths) == len(tables)), None)


def tables_of_split(folder: str, tables: Sequence[str], split: str | None = None) -> list[str]:
    """Select the files of one split.

    All are selected if there are no splits. Next to other names, a single usual one is no split by default.

    Args:
        folder: The folder, for the error.
        tables: Its files.
        split: Split to use. Default: the only split.

    Raises:
        UserError: If the files are of several splits, and none of them was chosen, or of another split only.
    """
    splits = by_split(tables)
    by_default = split is None or (split == DEFAULT and not only_split(tables))
    if not splits or (len(splits) == 1 and by_default):
        return list(tables)
    if split in splits:
        return splits[split]
    if split is None:
        patterns = " or ".join(f"'{_pattern(paths, tables)}'" for paths in splits.values())
        raise UserError(f"{folder}: Parquet of {len(splits)} splits; give the files of one, {patterns}")
    raise UserError(f"{folder}: Parquet without a split {split!r}; set split: {' or '.join(splits)}")


def _has_hub_name(path: str) -> bool:
    """Check for a name such as `train-0.parquet`, with a hyphen after the split."""
    found = FILE.search(path)
    return found is not None and path[found.end(1 if found[1] else 2)] == "-"


def exact_pattern(paths: Sequence[str]) -> str:
    """Build a pattern for these files of a folder, and no others."""
    folder = paths[0].rpartition("/")[0]
    names = [path.rpartition("/")[2] for path in paths]
    return paths[0] if len(paths) == 1 else f"{folder}/{{{','.join(names)}}}"


def _pattern(paths: Sequence[str], tables: Sequence[str]) -> str:
    """Build a pattern for the files of a split, short if no other of the tables fits."""
    start = os.path.commonprefix(paths).rstrip("0123456789")  # noqa: RUF071 (of characters, not of folders)
    fitting = [path for path in tables if path.startswith(start)]
    return f"{start}*{EXTENSION}" if len(paths) > 1 and len(fitting) == len(paths) else exact_pattern(paths)
