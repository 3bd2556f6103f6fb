"""A step in processes of its own: forward their events, report their failure, and pass signals on to them."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vfm.base import UserError
from vfm.flow.plan.plan import Step
from vfm.interfaces import Event, Preempted

Send = Callable[[Event], None]
ERROR_LINES = 15  # lines of the processes' standard error that are shown after a failure


def run_subprocess(
    command: list[str], environment: dict[str, str], step: Step, send: Send, lock_descriptor: int
) -> None:
    """Run the command of a prepared step and wait for its end.

    Raises:
        UserError: the step reported a mistake of the user.
        Preempted: SIGTERM or SIGUSR1 stopped the step.
        RuntimeError: the step failed; the message ends with the last lines of its standard error.
    """
    # The subprocess inherits the lock: if this process is killed, the lock is held until the subprocess ends too.
    errors = step.slot.work / "process.log"
    with (
        errors.open("wb") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
            env=environment,
            pass_fds=[lock_descriptor],
        ) as process,
        signals_forwarded(process) as stopped,
    ):
        try:
            failure = _forward_events(process, send)
        except BaseException:
            process.terminate()  # torchrun ends its own processes, so that none is orphaned
            process.wait()
            raise
        process.wait()
    if stopped:
        name = signal.Signals(stopped[0]).name
        message = f"{step.stage.name}: stopped by {name}; the next run resumes from its last checkpoint"
        raise Preempted(message, stopped[0])
    if process.returncode != 0:
        if failure:
            raise UserError(failure)
        tail = errors.read_text(errors="replace").strip().splitlines()[-ERROR_LINES:]
        raise RuntimeError(f"{step.stage.name}: its process failed:\n" + "\n".join(tail))


@contextmanager
def signals_forwarded(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Forward SIGTERM and SIGUSR1 to the process as SIGTERM; it saves a checkpoint. Yield the list of those that came.

    SIGUSR1 would end torchrun at once.
    """
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        process.terminate()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stopped
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forward_events(process: subprocess.Popen[str], send: Send) -> str | None:
    """Send the process's events on until it ends; return the message of its first failure, if any.

    Of several processes one fails first, with a full disk for example; the others report afterwards that it is gone.
    """
    assert process.stdout
    failure = None
    for line in process.stdout:
        # The process writes events only, but torchrun and whatever prints before `vfm step` is reached share its pipe.
        try:
            event = Event.from_json(line)
        except ValueError:
            continue
        if event.type == "run_failed":
            failure = failure or str(event.data["message"])
        else:
            send(event)
    return failure
