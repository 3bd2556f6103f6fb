"""The hooks that plugins implement. All stages come in through them, including vfm's."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from vfm.interfaces.events import Event
from vfm.interfaces.stage import Stage

hookspec = pluggy.HookspecMarker("vfm")
hookimpl = pluggy.HookimplMarker("vfm")


@hookspec
def vfm_stages() -> Iterable[type[Stage]]:  # type: ignore[empty-body]
    """List the stage types that this plugin adds. The plugin's module must not import torch."""


@hookspec
def vfm_statistics() -> Iterable[str]:  # type: ignore[empty-body]
    """Name classes, `package.module:Class`, that describe samples for `vfm data`, such as by their languages.

    A class has `add(sample, image, where)`, called for each sample with its undecoded PIL image and its address, and
    `lines()`, which gives the lines to print. If a library is absent, its `ModuleNotFoundError` is reported.
    """


@hookspec
def vfm_event(event: Event) -> None:
    """Receive an event of a run. Listeners cannot change the run."""
