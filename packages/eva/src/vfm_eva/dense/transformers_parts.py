"""Classes from transformers, an optional dependency that is imported only where a model uses it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vfm.plugin import UserError, how_to_install


def modeling(name: str) -> Any:
    """Import transformers' module of an architecture, such as `upernet`.

    Raises:
        UserError: If transformers is not installed.
    """
    try:
        return import_module(f"transformers.models.{name}.modeling_{name}")
    except ImportError:
        raise UserError(f"head: {name} needs transformers: {how_to_install('vfm-eva[upernet]')}") from None
