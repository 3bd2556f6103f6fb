"""Prompt templates: the words around a class name."""

from __future__ import annotations

from collections.abc import Sequence

from vfm.config import UserError


def check_templates(templates: Sequence[str], where: str = "") -> list[str]:
    """The templates, each with `{}` for the class name; CLIP_benchmark's spelling, `{c}`, is taken too.

    Args:
        templates: as the user wrote them.
        where: the file they stand in, for the message.

    Raises:
        UserError: one has no place for the class name.
    """
    spelled = [template.replace("{c}", "{}") for template in templates]
    for template in spelled:
        if "{}" not in template:
            raise UserError(f"{where and where + ': '}template {template!r} has no {{}} for the class name")
    return spelled
