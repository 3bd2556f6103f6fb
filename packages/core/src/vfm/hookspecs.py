"""The doors of vfm: everything it can do comes in here, the built-ins too."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from vfm.events import Event
from vfm.stage import Stage

hookspec = pluggy.HookspecMarker("vfm")
hookimpl = pluggy.HookimplMarker("vfm")


@hookspec
def vfm_stages() -> Iterable[type[Stage]]:  # type: ignore[empty-body]
    """The stage types that this plugin adds. Light: torch is imported only inside `run`."""


@hookspec
def vfm_event(event: Event) -> None:
    """Told what happens. Listeners watch and cannot change a run."""
