"""Paths and artifacts that a user gives."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vfm.base import UserError
from vfm.interfaces import Artifact

AnyPath = str | os.PathLike[str]
PATHS = (str, os.PathLike)  # for `isinstance`


def as_place(given: AnyPath | Artifact) -> str:
    """Return a path or a name as text; of an artifact its folder.

    Raises:
        UserError: it is something else.
    """
    if isinstance(given, Artifact):
        return str(given.path)
    if not isinstance(given, PATHS):
        raise UserError(f"expected a path, a name or an artifact, got a {type(given).__name__}")
    return os.fspath(given)


def as_words(given: str | Sequence[str]) -> list[str]:
    """Return one word or several as a list."""
    return [given] if isinstance(given, str) else list(given)
