"""Find out whether a process works on a run, and otherwise how it ended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from vfm.base import UserError
from vfm.flow.plan.store import Slot
from vfm.flow.records.runs import EVENTS_FILE, artifact_links
from vfm.interfaces import Event
from vfm.storage.locks import is_locked

State = Literal["running", "finished", "failed", "stopped"]
TAIL_BYTES = 64 << 10  # bytes to read at the end of an event file, since the event that ended the run is near the end


def is_running(directory: Path) -> bool:
    """Check whether a process works on a run.

    It writes the run's events, or makes the artifact of a stage. A training stage prepared by `vfm run --prepare` is
    run by a process that does not write events of the run.

    Raises:
        UserError: If the file of events, or a lock, is not a regular file.
    """
    if is_locked(directory / EVENTS_FILE):
        return True
    for link in artifact_links(directory):
        artifact = Path(os.path.realpath(link))
        if is_locked(Slot(artifact.parent, artifact.name).lock_file):
            return True
    return False


def state_of(directory: Path, record: Mapping[str, Any]) -> State:
    """Determine the state of a run.

    It is `stopped` if a signal ended it, or it waits for `vfm step`.

    Args:
        directory: Folder of the run.
        record: The content of its `run.json`.
    """
    with suppress(UserError):
        if is_running(directory):
            return "running"
    if record.get("seconds") is not None:
        return "finished"
    if failure_of(directory):
        return "failed"
    return "stopped"


def failure_of(directory: Path) -> str:
    """Read why a run failed in its last attempt.

    The text is empty if it did not fail, or was interrupted.
    """
    file = directory / EVENTS_FILE
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        stream.seek(-min(TAIL_BYTES, file.stat().st_size), os.SEEK_END)
        lines = stream.read().splitlines()
    for line in reversed(lines):
        with suppress(ValueError):  # a line that was cut off when the process was killed
            event = Event.from_json(line.decode(errors="replace"))
            if event.type == "run_failed":
                if event.data.get("interrupted"):
                    return ""
                return str(event.data.get("message", ""))
            if event.type == "run_started":
                return ""
    return ""
