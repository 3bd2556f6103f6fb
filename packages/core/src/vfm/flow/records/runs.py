"""The runs of a store. Each has a separate folder, with a name and a number.

store/runs/
  quickstart@1/    links from stage names to artifacts, recipe.yaml, run.json, events.jsonl, report.html
  quickstart@2/    the same for a run with other settings, whose artifacts differ
  quickstart       a link to the folder of the run that was started last

Running the same plan again, after a crash or with everything cached, is the same run. A run belongs to its recipe's
file: a second file with the same name gets another name (`quickstart-2`). Numbers, not times, order the runs of a name.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.flow.plan.plan import Step
from vfm.flow.plan.store import LINKS, Store
from vfm.flow.recipe.recipe import Recipe
from vfm.flow.recipe.run_names import own_name, owner_of
from vfm.flow.records.run_record import record_of
from vfm.storage.integrity import hash_file, read_sealed, seal
from vfm.storage.locks import locked
from vfm.storage.permissions import check_writable, is_writable
from vfm.storage.publishing import part_name, write_file

RUN_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
RECIPE_FILE = "recipe.yaml"
REPORT_FILE = "report.html"
LIST_LOCK = ".lock"  # next to the runs; held while a run gets its number, and while runs are removed
_FOLDER = re.compile(r"(?P<name>[^.].*)@(?P<number>\d{1,9})")


@dataclass(frozen=True)
class KeptRun:
    """A run in a store.

    Attributes:
        directory: Folder of the run.
        name: Name shared with the other runs of the same recipe.
        number: Number among the runs of this name, from 1.
        record: Content of its `run.json`; empty if it is missing or damaged.
    """

    directory: Path
    name: str
    number: int
    record: Mapping[str, Any]

    @property
    def owner(self) -> str | None:
        """Identity of its recipe (`owner_of`), if it is known."""
        file = self.record.get("file")
        if isinstance(file, str):
            return file
        return None

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.record.get("seconds") is not None

    @property
    def links(self) -> dict[str, str]:
        """Name of the artifact's folder by stage."""
        return {link.name: link.readlink().name for link in artifact_links(self.directory)}


def artifact_links(directory: Path) -> list[Path]:
    """List the links of a run's folder to the artifacts of its stages."""
    folder = directory / LINKS
    if not folder.is_dir():
        return []
    return [link for link in folder.iterdir() if link.is_symlink() and not link.name.startswith(".")]


def kept_runs(store: Store) -> list[KeptRun]:
    """List the runs of a store, grouped by name and in the order of their numbers.

    Raises:
        UserError: If the store is not a folder.
    """
    store.check()
    runs = []
    for folder in store.runs.iterdir() if store.runs.is_dir() else ():
        parts = _FOLDER.fullmatch(folder.name)
        if parts and folder.is_dir() and not folder.is_symlink():
            record: dict[str, Any] = {}
            # A run with a damaged record still owns its number and its links.
            with suppress(UserError):
                record = read_sealed(folder / RUN_FILE)
            runs.append(KeptRun(folder, parts["name"], int(parts["number"]), record))
    return sorted(runs, key=lambda run: (run.name, run.number))


def hash_of_record(directory: Path) -> str:
    """Hash the record of a run. It commits to everything that the run made."""
    return hash_file(directory / RUN_FILE)


def find_run(word: str, store: Store) -> Path | None:
    """Find the folder of a run, if there is such a run.

    Args:
        word: The folder, `NAME@NUMBER`, `NAME` for the run started last, or a recipe as an argument of `vfm run`.
        store: The store.
    """
    path = Path(word)
    names = [word, path.stem]
    if path.is_file():
        owner = owner_of(path, "", store.root)
        names = [run.name for run in kept_runs(store) if run.owner == owner][:1]
    candidates = [path, *map(store.run_directory, names)]
    for folder in candidates:
        if (folder / RUN_FILE).is_file():
            return folder
    return None


def open_run(recipe: Recipe, steps: Sequence[Step], store: Store) -> Path:
    """Open the folder of a plan's run, with the resolved recipe and a link to the artifact of each stage.

    The links exist from the start, so that `vfm clean` does not remove the partial results of an interrupted run. A
    link dangles until its artifact is published. If the store is not writable and all artifacts exist, the folder is a
    temporary one outside the store.

    Args:
        recipe: The recipe.
        steps: Its planned steps.
        store: Store of the artifacts.

    Raises:
        UserError: If the store is not writable, and an artifact is missing.
    """
    folder = store.runs
    if is_writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LIST_LOCK, "the list of runs"):
            folder = _numbered(recipe, steps, store)
            if is_writable(folder):
                _link(store.run_directory(folder.name.rpartition("@")[0]), Path(folder.name))
                return folder
    if any(step.status != "cached" for step in steps):
        check_writable(folder)
    directory = Path(tempfile.mkdtemp(prefix=f"vfm-{recipe.name}-"))
    _fill(directory, recipe, steps, store, to_store=store.root.absolute())
    return directory


def through_link(file: Path) -> Path:
    """Build the path of a run's file through the link to the run that was started last, if that is this run."""
    folder = file.parent
    latest = folder.with_name(folder.name.rpartition("@")[0] or folder.name)
    if latest.is_symlink() and latest.samefile(folder):
        return latest / file.name
    return file


def _numbered(recipe: Recipe, steps: Sequence[Step], store: Store) -> Path:
    """Find the folder of the run with the plan's artifacts, or create a folder with the next number."""
    existing = kept_runs(store)
    name = own_name(recipe.name, _owner(recipe, store), [(run.name, run.owner) for run in existing])
    wanted = {step.stage.name: step.slot.name for step in steps}
    same = None
    number = 0
    for run in existing:
        if run.name == name:
            number = run.number
            if run.links == wanted:
                same = run
    following = store.run_directory(f"{name}@{number + 1}")
    older = store.run_directory(name)
    if older.is_dir() and not older.is_symlink():  # versions without numbers stored the only run of a recipe there
        older.rename(following)
        return _numbered(recipe, steps, store)
    if same:
        if not same.finished and is_writable(same.directory):
            write_record(same.directory, _first_record(recipe, steps, store))
        return same.directory
    # Filled under another name and then renamed, so that no other process finds half a run.
    part = part_name(following)
    part.mkdir()
    # Relative links, so that the runs of a moved store still lead to its artifacts.
    _fill(part, recipe, steps, store, to_store=Path("../../.."))
    part.rename(following)
    return following


def _owner(recipe: Recipe, store: Store) -> str:
    return owner_of(recipe.file, recipe.name, store.root)


def _fill(directory: Path, recipe: Recipe, steps: Sequence[Step], store: Store, to_store: Path) -> None:
    """Write the links, the recipe and the record of a new run. The record marks it as unfinished."""
    links = directory / LINKS
    links.mkdir()
    for step in steps:
        _link(links / step.stage.name, to_store / step.slot.name)
    write_record(directory, _first_record(recipe, steps, store))


def _first_record(recipe: Recipe, steps: Sequence[Step], store: Store) -> dict[str, Any]:
    return record_of(recipe, steps, store.root, started=time.time(), seconds=None)


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Write the `run.json` of a run and its resolved recipe, each atomically."""
    _write(directory / RECIPE_FILE, record["text"].encode(errors="backslashreplace"))
    _write(directory / RUN_FILE, seal(record))


def _write(file: Path, content: bytes) -> None:
    if not (file.is_file() and file.read_bytes() == content):
        write_file(file, content, durable=False)


def _link(path: Path, target: Path) -> None:
    """Create or replace a link atomically, since another run may do the same."""
    temporary = part_name(path)
    temporary.symlink_to(target)
    temporary.replace(path)
