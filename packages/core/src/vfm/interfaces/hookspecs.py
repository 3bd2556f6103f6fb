"""The hooks that plugins implement. All stages come in through them, including vfm's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pluggy

from vfm.interfaces.events import Event
from vfm.interfaces.stage import Stage

hookspec = pluggy.HookspecMarker("vfm")
hookimpl = pluggy.HookimplMarker("vfm")


@hookspec
def vfm_stages() -> Iterable[type[Stage]] | Mapping[str, str]:  # type: ignore[empty-body]
    """List the stage types that this plugin adds. The plugin's module must not import torch.

    A mapping of addresses by kind, `{"words.count": "vfm_words.stages:CountWords"}`, names the types instead. Each is
    imported when its kind is first used, so a plugin with many stages does not slow down commands that use few.
    """


@hookspec
def vfm_statistics() -> Iterable[str]:  # type: ignore[empty-body]
    """List classes that compute statistics of samples for `vfm data`, such as languages.

    A class is given as `package.module:Class`. It has `add(sample, image, where)`, called for each sample with its
    undecoded PIL image and its address, and `lines()` for the lines to print. If a library is missing, its
    `ModuleNotFoundError` is reported.
    """


@hookspec
def vfm_event(event: Event) -> None:
    """Receive an event of a run. Listeners cannot change the run."""
