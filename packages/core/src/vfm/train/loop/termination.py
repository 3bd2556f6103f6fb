"""Signals that stop a training run after it has saved a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGUSR1)  # sent by job schedulers before they kill a process


class Termination(threading.Event):
    """An event that is set by a signal to stop. `number` is the number of the signal."""

    number: int = signal.SIGTERM


@contextmanager
def termination() -> Iterator[Termination]:
    """Yield an event that SIGTERM and SIGUSR1 set instead of ending the process, so that a checkpoint can be saved.

    Python delivers signals to the main thread only. In another thread the event is never set.
    """
    requested = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def request(number: int, frame: FrameType | None) -> None:
        requested.number = number
        requested.set()

    # Ctrl-C is left alone: whoever types it does not want to wait for a checkpoint.
    before = {number: signal.signal(number, request) for number in ENDING}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
