"""Expand brace patterns, wildcards and lists of paths, local and remote."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Sequence

from vfm.base import UserError
from vfm.storage import remote
from vfm.storage.credentials import without_user
from vfm.storage.remote import filesystem, is_remote

MAX_NAMES = 1_000_000  # names of one brace pattern
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def expand_braces(pattern: str) -> list[str]:
    """List all paths of a brace pattern, expanded as in bash.

    Examples are `{000..009}.tar` and `{a,b}/{0..3}.tar`.

    Raises:
        UserError: If a range is descending, or there are more than a million names.
    """
    pieces = _BRACES.split(pattern)  # text and the contents of braces, alternating
    choices: list[Sequence[str]] = []
    for index, piece in enumerate(pieces):
        choices.append([piece] if index % 2 == 0 else _alternatives(piece, pattern))
    count = math.prod(map(len, choices))
    if count > MAX_NAMES:  # checked before any name is built, so that a pattern cannot fill the memory
        raise UserError(f"{pattern}: expected a pattern of at most {MAX_NAMES:,} names, got {count:,}")
    return list(map("".join, itertools.product(*choices)))


def _alternatives(inside: str, pattern: str) -> Sequence[str]:
    span = _RANGE.fullmatch(inside)
    if not span:
        return inside.split(",")
    first, last = span[1], span[2]
    if int(first) > int(last):
        raise UserError(f"{pattern}: expected an ascending range, got {{{inside}}}")
    count = int(last) - int(first) + 1
    if count > MAX_NAMES:
        raise UserError(f"{pattern}: expected a pattern of at most {MAX_NAMES:,} names, got {count:,}")
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def expand_paths(path: str | Sequence[str]) -> list[str]:
    """Expand a path, a list of paths, brace patterns, wildcards, and several paths joined by `::`.

    The files of a brace pattern need not exist. Wildcards give the existing files, sorted.

    Raises:
        UserError: If a wildcard pattern matches nothing.
    """
    parts = [path] if isinstance(path, str) else list(path)
    patterns: list[str] = []
    for part in parts:
        patterns += part.split("::")
    files: list[str] = []
    for pattern in patterns:
        for name in expand_braces(os.path.expanduser(pattern)):
            wildcards = "*" if name.startswith(("http://", "https://")) else "*?"  # in a URL, `?` begins a query
            is_pattern = any(wildcard in name for wildcard in wildcards)
            matches = _wildcards(name) if is_pattern else [name]
            if not matches:
                raise UserError(f"{name}: no such file")
            files += matches
            if len(files) > MAX_NAMES:
                raise UserError(f"{pattern}: expected at most {MAX_NAMES:,} files, got more")
    return files


def _wildcards(name: str) -> list[str]:
    if not is_remote(name):
        return sorted(glob.glob(name))
    store, _ = filesystem(name)
    matches = sorted(map(store.unstrip_protocol, remote.ask(name, "glob")))
    return matches if "@" in name else list(map(without_user, matches))
