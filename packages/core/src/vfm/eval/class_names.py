"""Checks of class names before a run, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from vfm.base import UserError


def check_class_names(names: Sequence[str], where: str) -> None:
    """Check that class names are different and not empty.

    Raises:
        UserError: fewer than two classes, an empty name, or one name for two classes.
    """
    if len(names) < 2:
        raise UserError(f"{where}: expected two or more classes, got {len(names)}")
    for label, name in enumerate(names):
        if not name.strip():
            raise UserError(f"{where}: class {label} has an empty name")
        if names.index(name) != label:
            raise UserError(f"{where}: classes {names.index(name)} and {label} are both named {name!r}")


def _first_difference(one: list[str], other: list[str]) -> tuple[str, str]:
    for a, b in zip([*one, "(none)"], [*other, "(none)"], strict=False):
        if a != b:
            return a, b
    return one[-1], "(none)"
