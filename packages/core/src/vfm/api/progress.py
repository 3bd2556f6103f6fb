"""What a call shows while it works: a progress bar and messages, or nothing but Python warnings."""

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
        """Remove what is shown."""
        ...


class WarningListener:
    """Shows warnings only, by Python's `warnings`, where they can be filtered."""

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Pass a warning on."""
        if event.type == "warning":
            warnings.warn(f"{event.stage or 'vfm'}: {event.data['message']}", stacklevel=_level_of_caller())

    def close(self) -> None:
        """Leave everything as it is."""


def _level_of_caller() -> int:
    """Return the `stacklevel` of the code that called vfm, for a warning of the function that calls this."""
    frame: FrameType | None = sys._getframe(1)
    level, found = 1, 1
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == "vfm":
            found = level + 1  # the caller of the outermost such frame, as far as it is known
        frame, level = frame.f_back, level + 1
    return found


def listener(progress: bool) -> Listener:
    """Return a listener for a call from Python: bars and messages on the standard error, or warnings only."""
    return ConsoleListener(TerminalConsole(stderr=True)) if progress else WarningListener()


@contextmanager
def shown_by(
    listener: Listener, name: str, folder: Path, work: Path | None = None, inputs: Mapping[str, Path] | None = None
) -> Iterator[Context]:
    """Yield a context whose events a listener shows under a name.

    Args:
        listener: it is closed at the end.
        name: of the work.
        folder: for what the work writes.
        work: for its partial results; None: the same folder.
        inputs: folders of its inputs.
    """
    start: dict[str, Any] = {"kind": "", "status": "new"}
    listener.vfm_event(Event("stage_started", name, start))
    try:
        yield Context(name, folder, work or folder, inputs or {}, listener.vfm_event)
    finally:
        listener.close()
