"""A time limit for work. If it is exceeded, the stacks are written, and the process ends with a message."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def deadline(seconds: float, work: str, report: Callable[[str], None], stacks: Path) -> Iterator[None]:
    """End this process if the context takes longer than some seconds.

    Args:
        seconds: The longest time.
        work: Description of the work in the context, for the message.
        report: Called with the message before the process ends.
        stacks: File for the stacks of all threads.
    """
    ended = threading.Event()

    def watch() -> None:
        if not ended.wait(seconds):
            dump_stacks(stacks)
            message = f"{work} hangs: nothing has come after {seconds:.0f} s (stacks: {stacks})"
            report(message)
            print(message, file=sys.stderr, flush=True)
            # Not `sys.exit`, which only ends this thread. The main thread hangs and cannot be asked to end.
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def dump_stacks(file: Path) -> None:
    """Write the stacks of this process' threads."""
    with suppress(OSError):  # a full disk must not keep the process alive
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
