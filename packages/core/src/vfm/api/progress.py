"""Show the progress and messages of a call, or only Python warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from vfm.base import TerminalConsole
from vfm.flow.listeners.listeners import ConsoleListener
from vfm.interfaces import Context, Event, hookimpl


class Listener(Protocol):
    """Receives the events of a call."""

    def vfm_event(self, event: Event) -> None:
        """Show an event."""
        ...

    def close(self) -> None:
        """Remove the progress bar."""
        ...


class WarningListener:
    """Shows only warnings, with Python's `warnings`, so that they can be filtered."""

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Forward a warning."""
        if event.type == "warning":
            warnings.warn(f"{event.stage or 'vfm'}: {event.data['message']}", stacklevel=_level_of_caller())

    def close(self) -> None:
        """Do nothing."""


def _level_of_caller() -> int:
    """Compute the `stacklevel` of the code that called vfm, for a warning of the function that calls this."""
    frame: FrameType | None = sys._getframe(1)
    level, outermost = 1, 1
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".", 1)[0] == "vfm":
            outermost = level + 1  # the caller of the outermost vfm frame so far
        frame = frame.f_back
        level = level + 1
    return outermost


def listener(progress: bool) -> Listener:
    """Create a listener for a call from Python.

    Args:
        progress: Show bars and messages on the standard error. Otherwise only warnings are shown.
    """
    if not progress:
        return WarningListener()
    return ConsoleListener(TerminalConsole(stderr=True))


@contextmanager
def shown_by(
    listener: Listener, name: str, folder: Path, work: Path | None = None, inputs: Mapping[str, Path] | None = None
) -> Iterator[Context]:
    """Yield a context whose events a listener shows under a name.

    Args:
        listener: Receives the events, and is closed at the end.
        name: Name of the work.
        folder: Folder for the results.
        work: Folder for partial results. None: the same folder.
        inputs: Folders of its inputs.
    """
    start: dict[str, Any] = {"kind": "", "status": "new"}
    listener.vfm_event(Event("stage_started", name, start))
    try:
        yield Context(name, folder, work or folder, inputs or {}, listener.vfm_event)
    finally:
        listener.close()
