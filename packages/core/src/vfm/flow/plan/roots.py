"""A root is a single hash of an artifact, its files and all its inputs.

The root of an artifact covers the size and SHA-256 of each of its files and the roots of its inputs, back to the
fingerprints of outside files, which its identity covers. Its manifest has

    "root": its root
    "roots": {identity of an input: root of the input that it was computed from}
    "caches": folders without hashes, since they can be made again

so a result that was computed from other weights than the present ones is recognised, although their identity is the
same. Panels are not included, since some are charts of times: an artifact that is made again with the same bits has the
same root.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.interfaces import MANIFEST_FILE
from vfm.storage.integrity import known_files, read_sealed
from vfm.storage.store_files import reading

ROOT = "root"
ROOTS = "roots"
CACHES = "caches"
PANELS = "panels/"


def root_of(manifest: Mapping[str, Any], file: Path) -> str:
    """Compute the root of an artifact from its manifest.

    An artifact of an older version, without hashes of files, has none ("").

    Args:
        manifest: The manifest.
        file: Its file, for errors.

    Raises:
        UserError: If the manifest is not of the right form.
    """
    known = known_files(manifest, file)
    if known is None:
        return ""
    with reading(file, "a manifest"):
        roots = dict(manifest.get(ROOTS) or {})
        content = {
            "kind": manifest.get("kind"),
            "identity": manifest.get("identity"),
            "files": {name: entry for name, entry in known.items() if not name.startswith(PANELS)},
            "inputs": sorted([identity, roots.get(identity, "")] for identity in manifest.get("inputs", {}).values()),
        }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Origin:
    """The root of an artifact, and the roots of the inputs that it was computed from, by their identities."""

    root: str = ""
    roots: Mapping[str, str] = field(default_factory=dict)


_read: dict[Path, tuple[tuple[int, ...], Origin]] = {}  # by folder: the state of its manifest, and its origin


def manifest_of(folder: Path) -> dict[str, Any]:
    """Read the manifest of an artifact, and keep its origin, so that a plan reads each manifest once.

    Raises:
        UserError: If the manifest is missing or damaged.
    """
    file = folder / MANIFEST_FILE
    state = _state(file)
    manifest = read_sealed(file, "kind", "identity", "inputs")
    root = root_of(manifest, file)
    if state:
        roots = manifest.get(ROOTS) or {}  # `root_of` has checked its form
        _read[folder] = state, Origin(root, {str(identity): str(of_input) for identity, of_input in roots.items()})
    return manifest


def origin_of(folder: Path) -> Origin:
    """Look up the roots of an artifact. They are empty if it does not exist, is damaged, or is of an older version."""
    with suppress(UserError, KeyError):
        if folder not in _read or _read[folder][0] != _state(folder / MANIFEST_FILE):
            manifest_of(folder)
        return _read[folder][1]
    return Origin()


def _state(file: Path) -> tuple[int, ...]:
    """Collect size, times and inode of a file, if it exists. They change when it is written."""
    try:
        status = os.stat(file)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
