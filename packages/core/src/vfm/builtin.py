"""The stages that core itself brings, through the same hook as every plugin."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.hookspecs import hookimpl
from vfm.stage import Stage


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Data of the user, the made world, pretrained models, and the ruler."""
    return []
