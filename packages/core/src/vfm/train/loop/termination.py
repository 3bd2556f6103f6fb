"""Signals that ask a training to stop: it saves a checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGUSR1)  # signals after which a training saves a checkpoint and stops


class Termination(threading.Event):
    """Set by a signal that asks for an end; `number` is that of the signal."""

    number: int = signal.SIGTERM


@contextmanager
def termination() -> Iterator[Termination]:
    """Yield an event that SIGTERM and SIGUSR1 set instead of ending the process, so that a checkpoint can be saved.

    Python delivers signals to the main thread; in another thread the event is never set.
    """
    requested = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def request(number: int, frame: FrameType | None) -> None:
        requested.number = number
        requested.set()

    before = {number: signal.signal(number, request) for number in ENDING}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
