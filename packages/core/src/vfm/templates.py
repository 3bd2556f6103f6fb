"""Prompt templates: the words around a class name."""

from __future__ import annotations

from collections.abc import Sequence

from vfm.config import UserError


def check_templates(templates: Sequence[str], where: str = "") -> list[str]:
    """Return the templates, each with `{}` for the class name; CLIP_benchmark's `{c}` is replaced by `{}`.

    Args:
        templates: as the user wrote them.
        where: file with the templates, for the error.

    Raises:
        UserError: a template has no `{}`.
    """
    checked = [template.replace("{c}", "{}") for template in templates]
    for template in checked:
        if "{}" not in template:
            raise UserError(f"{where and where + ': '}template {template!r} has no {{}} for the class name")
    return checked
