"""The store has one readable folder per artifact. It is published by a rename, and a lock names its holder.

store/
  clip.train-3f2a91c0/            a published artifact: facts, bulk, panels/, manifest.json
  .clip.train-3f2a91c0.part/      the same while it is being written, renamed when complete
  .clip.train-3f2a91c0.work/      checkpoints and partial results, kept after a crash and removed after publishing
  .clip.train-3f2a91c0.lock       the process that is making it
  captions/                       captions that were given to `vfm.curate` as a list, one file each
  .fingerprints.json              cached fingerprints of outside files
  .whole-hashes.json              SHA-256 of large outside files, recorded by `vfm verify --inputs`
  signatures/                     signatures of roots, made by `vfm verify --sign`
  runs/quickstart@2/              a run: links to the artifacts, recipe.yaml, run.json, events.jsonl, report.html
  runs/quickstart                 a link to the run that was started last
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.base import UserError, redacted
from vfm.flow.plan.roots import CACHES, ROOT, root_of
from vfm.interfaces import FACTS_FILE, MANIFEST_FILE
from vfm.storage.integrity import FILES, hash_folder, seal
from vfm.storage.locks import is_locked, locked, shared
from vfm.storage.publishing import publish_folder

STEP_FILE = "step.json"


LINKS = "artifacts"  # folder of a run with a link to the artifact of each stage
SLOT_NAME = re.compile(r"[\w.-]+-[0-9a-f]{8}")  # `vfm clean` never removes anything with another name


@dataclass(frozen=True)
class Slot:
    """The place of an artifact in a store, with its published folder, the folders of its making, and its lock."""

    root: Path
    name: str

    @property
    def artifact(self) -> Path:
        """Folder of the published artifact."""
        return self.root / self.name

    @property
    def part(self) -> Path:
        """Folder of the artifact while it is being written."""
        return self.root / f".{self.name}.part"

    @property
    def work(self) -> Path:
        """Folder of checkpoints and partial results."""
        return self.root / f".{self.name}.work"

    @property
    def lock_file(self) -> Path:
        """File whose lock is held while the artifact is being made."""
        return self.root / f".{self.name}.lock"

    @property
    def status(self) -> str:
        """Current status, `cached`, `resume` or `new`."""
        if self.artifact.is_dir():
            return "cached"
        if self.work.is_dir() and any(self.work.iterdir()):
            return "resume"
        return "new"

    def begin(self) -> None:
        """Create the work folder, and an empty folder for the artifact."""
        self.work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir()

    def publish(self, manifest: dict[str, Any], *, without: Iterable[str] = ()) -> None:
        """Write the manifest and publish the artifact by one rename, so that a crash never leaves a partial artifact.

        Args:
            manifest: How the artifact was made. Sizes and hashes of its files are added.
            without: Files and folders that are not hashed, since they may change later.
        """
        caches = sorted(without)
        file = self.part / MANIFEST_FILE
        hashes = {CACHES: caches, FILES: hash_folder(self.part, without=(MANIFEST_FILE, *caches))}
        record = redacted(manifest)
        file.write_bytes(seal({**record, ROOT: root_of({**record, **hashes}, file), **hashes}))
        if self.artifact in self.folders:  # it was computed from other inputs
            self.artifact.rename(self.work / "replaced")
        publish_folder(self.part, self.artifact)
        shutil.rmtree(self.work, ignore_errors=True)

    @property
    def folders(self) -> list[Path]:
        """The existing folders of this slot, published or not. A link is not a folder of vfm, wherever it leads."""
        return [folder for folder in (self.artifact, self.part, self.work) if _is_folder(folder)]

    def discard(self, on_wait: Callable[[str], None] = lambda message: None) -> None:
        """Remove the artifact and its partial results, holding the lock."""
        with self.lock(on_wait):
            folders = self.folders
            if self.artifact in folders:  # renamed first, so that another run's plan finds all of its files or none
                if self.part in folders:
                    shutil.rmtree(self.part, ignore_errors=True)
                self.artifact.rename(self.part)
            for folder in self.folders:
                shutil.rmtree(folder)
            self.lock_file.unlink()

    @contextmanager
    def lock(self, on_wait: Callable[[str], None]) -> Iterator[int]:
        """Hold the lock, after waiting for any other holder, and yield the lock's file descriptor.

        Processes of torchrun may outlive a run that was killed. They are waited for as well (`in_use`).

        Args:
            on_wait: Called with a message that names the other holder.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.lock_file, self.name, on_wait) as descriptor:
            if self._process_lock.exists():
                with locked(self._process_lock, f"the processes of {self.name}", on_wait):
                    pass
            yield descriptor

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep later runs waiting while this process writes into the work folder, though its run may be killed."""
        with shared(self._process_lock):
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a run, or a process that outlives its run, is making the artifact."""
        return is_locked(self.lock_file) or is_locked(self._process_lock)

    def has_lock(self, names: Collection[str]) -> bool:
        """Check whether a listing of the store has the lock file, or the work folder with the other one."""
        return self.lock_file.name in names or self.work.name in names

    @property
    def _process_lock(self) -> Path:
        return self.work / "process.lock"


@dataclass(frozen=True)
class Store:
    """A folder of artifacts and runs."""

    root: Path

    def check(self) -> None:
        """Check that the store is a folder, or can become one.

        Raises:
            UserError: If its path belongs to something else, such as a file or a link to nothing.
        """
        if os.path.lexists(self.root) and not self.root.is_dir():
            raise UserError(f"{self.root}: expected a folder of artifacts and runs, got a file or a broken link")

    def slot(self, kind: str, identity: str) -> Slot:
        """Build the slot of an identity (hex digits). Its path is absolute, for processes in other folders."""
        return Slot(self.root.absolute(), f"{kind}-{identity[:8]}")

    @property
    def runs(self) -> Path:
        """Folder of the runs. `vfm.flow.records.runs` describes it."""
        return self.root / "runs"

    def run_directory(self, name: str) -> Path:
        """Build the path of a run's folder.

        `NAME` is the run that was started last, `NAME@NUMBER` any run.
        """
        return self.runs / name

    def entries(self) -> list[Path]:
        """List the entries whose names are those of artifacts, in the order of their names."""
        return [self.root / name for name in sorted(_names_in(self.root)) if SLOT_NAME.fullmatch(name)]

    def artifacts(self) -> list[Path]:
        """List the folders of the published artifacts."""
        published = []
        for path in self.entries():
            is_hidden = path.name.startswith(".")
            if not is_hidden and (path / MANIFEST_FILE).exists() and (path / FACTS_FILE).is_file():
                published.append(path)
        return published

    def unlinked(self, without: Collection[Path] = ()) -> list[Slot]:
        """Find the slots, published or left by a crash, that no run links to and no process holds.

        Args:
            without: Folders of runs whose links do not count.
        """
        linked: set[str] = set()
        for run in _inside(self.runs):
            links = _inside(run / LINKS) if run not in without else []
            for link in links:
                if link.is_symlink():  # it may lead to another run's link, so both ends count
                    linked |= {link.readlink().name, Path(os.path.realpath(link)).name}
        entries = _names_in(self.root)
        names = {path.name for path in self.artifacts()}
        for entry in entries:
            name, _, ending = entry.removeprefix(".").rpartition(".")
            if entry.startswith(".") and ending in ("part", "work") and SLOT_NAME.fullmatch(name):
                names.add(name)
        found = []
        for name in sorted(names - linked):
            slot = Slot(self.root, name)
            if slot.folders and not (slot.has_lock(entries) and slot.is_locked):
                found.append(slot)
        return found


def _is_folder(path: Path) -> bool:
    """Check whether a path is a folder, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _names_in(folder: Path) -> set[str]:
    """List the names in a folder. It may be missing."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _inside(folder: Path) -> list[Path]:
    """List a folder. Only a missing folder counts as empty, so that `clean` sees all links to artifacts."""
    if folder.name in ("runs", LINKS) and os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of links to the artifacts in use, got a file or a broken link")
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
