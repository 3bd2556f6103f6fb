"""How a model from outside is named: `hf-hub:org/model`, `local-dir:folder`, or the path of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vfm.config import UserError

Made = TypeVar("Made")
HUB, FOLDER = "hf-hub:", "local-dir:"


def local_folder(source: str) -> Path | None:
    """The folder that a source names, by `local-dir:` or by its path.

    Raises:
        UserError: `local-dir:` names none.
    """
    folder = Path(source.removeprefix(FOLDER))
    if source.startswith(FOLDER) and not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return folder if folder.is_dir() else None


def fetched(what: str, fetch: Callable[[], Made]) -> Made:
    """What `fetch` returns, or one line: what comes from the network fails in many ways."""
    try:
        return fetch()
    except Exception as error:
        raise UserError(f"{what}: not on this machine and cannot be fetched: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an error says, as far as it fits into a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
