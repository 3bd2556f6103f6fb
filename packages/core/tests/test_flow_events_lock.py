"""Several writers of the events of one folder: each line continues the chain, and a run says that it waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vfm.api.recipe_run import reporting
from vfm.flow.listeners.listeners import JsonLinesListener
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe
from vfm.flow.records.runs import EVENTS_FILE
from vfm.interfaces import Event, hookimpl, load_plugins
from vfm.storage import locks
from vfm.storage.chained_lines import broken_lines, end_of_chain

SUSPENDED = """
import os, signal, sys
from pathlib import Path
from vfm.flow.listeners.listeners import JsonLinesListener
from vfm.interfaces import Event

class Suspending(Event):
    def to_json(self):
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().to_json()

JsonLinesListener(Path(sys.argv[1])).vfm_event(Suspending("log", None, {"message": "one"}))
"""


class Messages:
    """Keep the events that the user sees."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        self.seen.append(event)

    def close(self) -> None:
        """Close nothing."""


def test_a_run_says_that_it_waits_for_a_suspended_run_and_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    directory, shown = tmp_path / "runs/r@1", Messages()
    file = directory / EVENTS_FILE

    def append() -> None:
        with reporting(load_plugins(), Recipe("r", "", ()), Store(tmp_path), directory, shown) as send:
            send(Event("log", None, {"message": "two"}))

    with subprocess.Popen([sys.executable, "-c", SUSPENDED, str(file)]) as other, ThreadPoolExecutor(1) as thread:
        try:
            os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
            appended = thread.submit(append)
            until = time.monotonic() + 20
            while not any(event.type == "warning" for event in shown.seen) and time.monotonic() < until:
                time.sleep(0.01)
            assert not appended.done()
        finally:
            other.send_signal(signal.SIGCONT)
        appended.result(timeout=60)
    (warning,) = (event.data["message"] for event in shown.seen if event.type == "warning")
    lock = directory / f".{EVENTS_FILE}.lock"
    assert warning.startswith(f"waiting for another run, which writes to {file}: if it is suspended, ")
    assert f"`fuser -v {lock}`" in warning
    assert lock.stat().st_size == 0  # written on each event, it would fail first on a full disk
    lines = file.read_bytes().splitlines(keepends=True)
    assert [Event.from_json(line.decode()).data["message"] for line in lines] == ["one", "two"]
    assert broken_lines(lines, end_of_chain(file)) == ([], True)


def test_threads_that_send_to_the_same_listener_continue_one_chain(tmp_path: Path) -> None:
    file = tmp_path / EVENTS_FILE
    listener = JsonLinesListener(file)

    def append(message: str) -> None:
        for _ in range(500):
            listener.vfm_event(Event("log", None, {"message": message}))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(append, "abcd"))
    listener.close()
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2000
    assert broken_lines(lines, end_of_chain(file)) == ([], True)
