"""Classes of transformers, which is optional: it is imported where a model is built from them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vfm.plugin import UserError, how_to_install


def modeling(name: str) -> Any:
    """Return transformers' module of an architecture, such as `upernet`.

    Raises:
        UserError: transformers is not installed.
    """
    try:
        return import_module(f"transformers.models.{name}.modeling_{name}")
    except ImportError:
        raise UserError(f"head: {name} needs transformers: {how_to_install('vfm-eva[upernet]')}") from None
