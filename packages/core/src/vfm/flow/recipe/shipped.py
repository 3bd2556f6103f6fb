"""Find the recipes and suites that installed packages ship, through the entry points `vfm`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from vfm.base import UserError

PURPOSES = {  # the folders of a package's `recipes`, in the order of `vfm recipes`
    "start": "Start here",
    "train": "Train and evaluate",
    "papers": "Settings of the papers, to plan and to adapt",
    "claims": "Claims, measured with controls",
}


@cache
def shipped_files(folder: str) -> dict[str, Path]:
    """Find the YAML files in a folder of every installed package, by name.

    Args:
        folder: The folder's name in the packages, `recipes` or `suites`. It may have subfolders.

    Raises:
        UserError: If two files have the same name.
    """
    files: dict[str, Path] = {}
    for package in sorted(_package_folders()):
        for file in sorted((package / folder).rglob("*.yaml")):
            if file.stem in files:
                raise UserError(f"expected one file {folder}/{file.stem}.yaml, got {files[file.stem]} and {file}")
            files[file.stem] = file
    return files


def package_of(file: Path) -> str:
    """Look up the import name of the package that ships a file."""
    return next(folder.name for folder in _package_folders() if file.is_relative_to(folder))


def _package_folders() -> Iterator[Path]:
    """Yield the folder of each package that has a plugin, without importing it."""
    packages = {entry.module.split(".", 1)[0] for entry in entry_points(group="vfm")}
    for name in packages:
        spec = find_spec(name)
        locations = spec.submodule_search_locations if spec else None
        yield from map(Path, locations or ())
