"""A step in processes of its own: their events are passed on, their failure is told, SIGTERM reaches them."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vfm.config import UserError
from vfm.events import Event
from vfm.flow.plan import Step
from vfm.stage import Preempted

Send = Callable[[Event], None]


def run_children(command: list[str], environment: dict[str, str], step: Step, send: Send, lock_descriptor: int) -> None:
    """Runs the command of a prepared step to its end.

    Raises:
        UserError: what the step says is wrong.
        Preempted: it was told to stop.
        RuntimeError: it failed; the end of what it wrote is told.
    """
    # The children inherit the lock: should this process be killed, they still hold it until they end.
    errors = step.slot.work / "process.log"
    with (
        errors.open("wb") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, pass_fds=[lock_descriptor]
        ) as child,
        _ended_by_sigterm(child) as stopped,
    ):
        try:
            failure = _listen(child, send)
        except BaseException:
            child.terminate()  # torchrun ends its processes; none is left without a parent
            child.wait()
            raise
        child.wait()
    if stopped.is_set():
        raise Preempted(f"{step.stage.name}: stopped by SIGTERM; the next run goes on from its last checkpoint")
    if child.returncode != 0:
        if failure:
            raise UserError(failure)
        tail = errors.read_text(errors="replace").strip().splitlines()[-15:]
        raise RuntimeError(f"{step.stage.name}: its process failed:\n" + "\n".join(tail))


@contextmanager
def _ended_by_sigterm(child: subprocess.Popen[str]) -> Iterator[threading.Event]:
    """Passes SIGTERM on to torchrun, whose processes save a checkpoint, and tells whether it came."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        child.terminate()

    if threading.current_thread() is not threading.main_thread():  # only that one is told of signals
        yield stopped
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(child: subprocess.Popen[str], send: Send) -> str | None:
    """Passes a child's events on until it ends; gives the message of its failure."""
    assert child.stdout
    failure = None
    for line in child.stdout:
        if not line.startswith("{"):
            continue
        event = Event.from_json(line)
        if event.type == "run_failed":
            failure = str(event.data["message"])
        else:
            send(event)
    return failure
