"""Paths and artifacts as arguments."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence

from vfm.base import UserError
from vfm.interfaces import Artifact
from vfm.storage.remote import is_remote

AnyPath = str | os.PathLike[str]
PATHS = (str, os.PathLike)  # for `isinstance`


def as_place(path: AnyPath | Artifact) -> str:
    """Convert a path, a name or an artifact (its folder) to text.

    Raises:
        UserError: If the argument is something else.
    """
    if isinstance(path, Artifact):
        return str(path.path)
    if not isinstance(path, PATHS):
        raise UserError(f"expected a path, a name or an artifact, got a {type(path).__name__}")
    return os.fspath(path)


def check_images_exist(images: Sequence[AnyPath]) -> None:
    """Check that the local files of images or videos exist, before a model's modules are imported.

    Raises:
        UserError: If one does not exist.
    """
    for image in images:
        if not is_remote(os.fspath(image)) and not os.path.exists(image):
            is_video = (mimetypes.guess_type(os.fspath(image))[0] or "").startswith("video/")
            raise UserError(f"{os.fspath(image)}: no such {'video' if is_video else 'image'}")


def as_words(words: str | Sequence[str]) -> list[str]:
    """Convert one word or several to a list."""
    if isinstance(words, str):
        return [words]
    return list(words)
