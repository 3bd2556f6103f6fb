"""The store: one readable folder for each artifact, published by one rename, guarded by a lock that names its holder.

store/
  clip.train-3f2a91c0/            a published artifact: facts, bulk, panels/, manifest.json
  .clip.train-3f2a91c0.part/      the same while it is being written; renamed when complete
  .clip.train-3f2a91c0.work/      checkpoints and partial results; they survive a crash and are removed after publishing
  .clip.train-3f2a91c0.lock       the process that is making it
  .fingerprints.json              cached fingerprints of outside files
  runs/quickstart/                links from stage names to artifacts, events.jsonl, report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.artifacts import FACTS_FILE

MANIFEST_FILE = "manifest.json"
LINKS = "artifacts"  # folder of a run with a link to the artifact of each stage
SLOT_NAME = re.compile(r"[\w.-]+-[0-9a-f]{8}")  # `vfm clean` never removes anything with another name


@dataclass(frozen=True)
class Slot:
    """The place of one artifact in a store: its published folder, the folders while it is being made, and its lock."""

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
        """`cached`, `resume` or `new`, at this moment."""
        if self.artifact.is_dir():
            return "cached"
        return "resume" if self.work.is_dir() and any(self.work.iterdir()) else "new"

    def begin(self) -> None:
        """Create the work folder, and an empty folder for the artifact."""
        self.work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir()

    def publish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest and publish the artifact by one rename: a crash never leaves a partial artifact."""
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (self.part / MANIFEST_FILE).write_text(text, encoding="utf-8")
        self.part.rename(self.artifact)
        shutil.rmtree(self.work, ignore_errors=True)

    @property
    def folders(self) -> list[Path]:
        """The existing folders of this slot, published or not."""
        return [folder for folder in (self.artifact, self.part, self.work) if folder.is_dir()]

    def discard(self, on_wait: Callable[[str], None] = lambda message: None) -> None:
        """Remove the artifact and its partial results, under the lock."""
        with self.lock(on_wait):
            for folder in self.folders:
                shutil.rmtree(folder)
            self.lock_file.unlink()

    @contextmanager
    def lock(self, on_wait: Callable[[str], None]) -> Iterator[int]:
        """Hold the lock, after waiting for any other holder, and yield the lock's file descriptor.

        The lock is the kernel's (`flock`): it is released when its holder dies.

        Args:
            on_wait: called with a message that names the other holder.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = self._acquire(on_wait)
        try:
            if left := os.pread(descriptor, 400, 0).decode(errors="replace"):
                on_wait(f"taking over {self.name}: it was {left}, which has ended")
            _write_holder(descriptor)
            yield descriptor
        finally:
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _acquire(self, on_wait: Callable[[str], None]) -> int:
        reported = ""
        while True:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
            if _try_lock(descriptor) and self._is_lock_file(descriptor):
                return descriptor
            holder = _holder(descriptor)
            os.close(descriptor)
            if holder != reported:
                on_wait(f"waiting for {self.name}: {holder}")
                reported = holder
            time.sleep(0.2)

    def _is_lock_file(self, descriptor: int) -> bool:
        """Return whether the locked file is still the one that others would lock; `discard` removes it."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.lock_file.stat())
        except FileNotFoundError:
            return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_holder(descriptor: int) -> None:
    who = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"held by {who}".encode(), 0)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 400, 0).decode(errors="replace") or "held by another process"


@dataclass(frozen=True)
class Store:
    """A folder of artifacts and runs."""

    root: Path

    def slot(self, kind: str, identity: str) -> Slot:
        """Return the slot of an identity (hex digits). Its path is absolute, for processes in other folders."""
        return Slot(self.root.absolute(), f"{kind}-{identity[:8]}")

    def run_directory(self, recipe: str) -> Path:
        """Return the folder of a recipe's links, events and report."""
        return self.root / "runs" / recipe

    def artifacts(self) -> list[Path]:
        """Return the folders of the published artifacts."""
        folders = (path.parent for path in self.root.glob(f"*/{MANIFEST_FILE}"))
        return sorted(path for path in folders if SLOT_NAME.fullmatch(path.name) and (path / FACTS_FILE).is_file())

    def unlinked(self) -> list[Slot]:
        """Return the slots, published or left by a crash, that no run links to and no process holds."""
        links = [link for run in _inside(self.root / "runs") for link in _inside(run / LINKS)]
        linked = {link.readlink().name for link in links if link.is_symlink()}
        partial = [path for path in self.root.glob(".*.*") if path.suffix in {".part", ".work"} and path.is_dir()]
        left = {path.stem[1:] for path in partial if SLOT_NAME.fullmatch(path.stem[1:])}
        names = ({path.name for path in self.artifacts()} | left) - linked
        return [slot for name in sorted(names) if not _held(slot := Slot(self.root, name))]


def _inside(folder: Path) -> list[Path]:
    """List a folder. Only a missing one is empty: `clean` must not remove artifacts whose links it cannot read."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _held(slot: Slot) -> bool:
    if not slot.lock_file.exists():
        return False
    descriptor = os.open(slot.lock_file, os.O_RDWR)
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)
