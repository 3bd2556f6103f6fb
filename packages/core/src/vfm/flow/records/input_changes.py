"""Changes in the outside files behind the results of a store, found by reading every byte of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.flow.plan.store import Store
from vfm.interfaces import MANIFEST_FILE
from vfm.storage import files
from vfm.storage.fingerprints import FingerprintCache, bytes_to_read, contents, contents_names, fingerprint
from vfm.storage.integrity import hash_file, read_sealed
from vfm.storage.remote_fingerprints import DIGITS
from vfm.storage.whole_hashes import WHOLE_FILE, add_hashes

MAX_NAMES = 3  # number of files of a folder, or results, to name in a line


@dataclass(frozen=True)
class OutsideInput:
    """An outside file or folder, its fingerprint when artifacts were made from it, and their names."""

    path: str
    fingerprint: str
    results: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        """The local files to read."""
        if files.is_remote(self.path):
            return []
        if os.path.isdir(self.path):
            return [os.path.join(self.path, name) for name in contents_names(self.path)]
        if not os.path.isfile(self.path):
            return []
        return [self.path]


def inputs_of(store: Path) -> list[OutsideInput]:
    """List the outside files behind the artifacts of a store, each with all results that were made from it."""
    manifests: dict[str, Mapping[str, Any]] = {}
    for folder in Store(store).entries():
        with suppress(UserError):  # `vfm verify` reports damaged manifests
            manifests[folder.name] = read_sealed(folder / MANIFEST_FILE, "identity", "inputs")
    users: dict[str, list[str]] = defaultdict(list)  # identity -> artifacts that were made from it
    for name, manifest in manifests.items():
        for identity in manifest["inputs"].values():
            users[identity].append(name)
    results: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for name, manifest in manifests.items():
        for path, known in (manifest.get("sources") or {}).items():
            results[path, known] |= _results(name, manifests, users)
    return [OutsideInput(path, known, tuple(names)) for (path, known), names in sorted(results.items())]


def _results(name: str, manifests: Mapping[str, Mapping[str, Any]], users: Mapping[str, list[str]]) -> dict[str, None]:
    """Collect an artifact and all artifacts made from it, each once."""
    results = {name: None}
    pending = [name]
    while pending:
        new = [user for user in users.get(manifests[pending.pop()]["identity"], ()) if user not in results]
        results |= dict.fromkeys(new)
        pending += new
    return results


class InputCheck:
    """Reads outside files and compares them with the files that results were made from."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.before = FingerprintCache(store)
        self.whole = self.before.whole  # fingerprint -> SHA-256 of large files
        self.recorded = 0  # number of large files whose SHA-256 is new

    def check(self, source: OutsideInput, on_bytes: Callable[[int], None]) -> str:
        """Describe how an input has changed since, in one line.

        The line is empty if it has not changed.

        Args:
            source: The input.
            on_bytes: Called with the number of bytes of each block read.
        """
        if len(source.fingerprint) != DIGITS:
            return "its fingerprint is of an older version, by time and path; run the recipe again"
        try:
            now = fingerprint(source.path, FingerprintCache())
        except UserError as error:
            return str(error).removeprefix(f"{source.path}: ")
        if now != source.fingerprint and fingerprint(source.path, self._unread()) == source.fingerprint:
            return ""  # a later version of a large file, which only differs between the blocks
        if now != source.fingerprint:
            on_bytes(sum(bytes_to_read(os.path.getsize(file)) for file in source.files))
            return "changed" + self._names(source.path)
        if files.is_remote(source.path):
            return ""
        changed = [file for file in source.files if not self._same_bytes(file, on_bytes)]
        if not changed:
            return ""
        return f"changed in bytes that its fingerprint leaves out: {_some(changed)}"

    def save(self) -> None:
        """Write the hashes of large files, for comparison in the next check."""
        if self.recorded:
            add_hashes(self.store, self.whole)

    def _unread(self) -> FingerprintCache:
        """Build a cache without fingerprints, so that every file is read, and large ones whole."""
        cache = FingerprintCache()
        cache.whole = self.whole
        return cache

    def _same_bytes(self, file: str, on_bytes: Callable[[int], None]) -> bool:
        size = os.path.getsize(file)
        if size <= WHOLE_FILE:  # its fingerprint covers all bytes
            on_bytes(size)
            return True
        digest = hash_file(Path(file), on_bytes)
        known = fingerprint(file, FingerprintCache())  # of its blocks
        self.recorded += known not in self.whole
        return self.whole.setdefault(known, digest) == digest

    def _names(self, path: str) -> str:
        """List the files of a folder that differ from an earlier plan."""
        if not os.path.isdir(path):
            return ""
        _, before = self.before.entries(path)
        now = contents(path, self._unread())
        names = []
        for name in sorted(before.keys() | now):
            if name not in now or before.get(name, ([], ""))[1] != now[name]:
                names.append(name)
        if before and names:
            return f": {_some(names)}"
        return ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def behind(source: OutsideInput) -> str:
    """Format the results that were made from an input, for a line."""
    return _some(list(source.results))
