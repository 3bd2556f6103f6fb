"""Paths and artifacts that a user gives."""

from __future__ import annotations

import os

from vfm.artifacts import Artifact

AnyPath = str | os.PathLike[str]
PATHS = (str, os.PathLike)  # for `isinstance`


def as_place(given: AnyPath | Artifact) -> str:
    """Return a path or a name as text; of an artifact its folder."""
    return str(given.path) if isinstance(given, Artifact) else os.fspath(given)
