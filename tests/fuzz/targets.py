"""What is fuzzed: every kind of file that vfm reads, each with the real commands that read it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vfm.cli import app

RUN, PLAN = ("run", "r.yaml", "--quiet"), ("plan", "r.yaml")
Read = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """Files to damage and the commands that read them.

    Attributes:
        name: of the target, in the table of outcomes.
        make: writes good files into the working directory.
        files: patterns of the files to damage.
        commands: one of them runs after the damage.
        read: returns what the command published, `items` and `bad`; None: nothing is compared.
        names: what names the file as well as its own name does.
        counts: samples read and samples counted must be as many as the samples put in.
    """

    name: str
    make: Callable[[], object]
    files: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...] = (RUN,)
    read: Read | None = None
    counts: bool = True
    names: tuple[str, ...] = ()


def recipe(*stages: dict[str, Any], name: str = "r.yaml") -> None:
    """Write a recipe into the working directory."""
    Path(name).write_text(yaml.safe_dump({"stages": list(stages)}, sort_keys=False))


def vfm(*words: str) -> None:
    """Run the command in this process.

    Raises:
        SystemExit: it failed.
    """
    try:
        app(list(words), prog_name="vfm")
    except SystemExit as end:
        if end.code:
            raise


def digest(*parts: object) -> str:
    """Return a short hash of a sample's parts."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
