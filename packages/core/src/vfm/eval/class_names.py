"""Checks of class names before a run. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from vfm.base import UserError


def check_class_names(names: Sequence[str], where: str) -> None:
    """Check that class names are distinct and not empty.

    Raises:
        UserError: If there are fewer than two classes, a name is empty, or two classes have the same name.
    """
    if len(names) < 2:
        raise UserError(f"{where}: expected two or more classes, got {len(names)}")
    for label, name in enumerate(names):
        if not name.strip():
            raise UserError(f"{where}: class {label} has an empty name")
        if names.index(name) != label:
            raise UserError(f"{where}: classes {names.index(name)} and {label} are both named {name!r}")


def _first_difference(names: list[str], other: list[str]) -> tuple[str, str]:
    for a, b in zip([*names, "(none)"], [*other, "(none)"], strict=False):
        if a != b:
            return a, b
    return names[-1], "(none)"
