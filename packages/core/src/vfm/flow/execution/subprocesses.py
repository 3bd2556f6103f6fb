"""Run a step in separate processes. Their events, failures and signals are forwarded."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from vfm.base import UserError
from vfm.flow.plan.plan import Step, stage_names
from vfm.interfaces import Event, Preempted

Send = Callable[[Event], None]
Start = Callable[..., AbstractContextManager["Process"]]
PROCESS_LOG = "process.log"  # in the work folder: the standard error of a process
ERROR_LINES = 15  # lines of standard error to show after a failure


class Process(Protocol):
    """A started process, as `subprocess.Popen` and `ForkedProcess` are."""

    stdout: Any
    returncode: Any

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""


@dataclass
class Processes:
    """The processes of the running steps. `stop` lets each of them save a checkpoint and end.

    Attributes:
        running: The processes. Threads add and remove theirs.
        stopped: Numbers of the signals received.
    """

    running: set[Process] = field(default_factory=set)
    stopped: list[int] = field(default_factory=list)

    def stop(self, number: int, frame: FrameType | None = None) -> None:
        """End all processes, including later ones, by SIGTERM, since SIGUSR1 would end torchrun at once."""
        self.stopped.append(number)
        for process in tuple(self.running):
            process.terminate()

    @contextmanager
    def of(self, process: Process) -> Iterator[None]:
        """Add a process to `running` during the `with` block."""
        self.running.add(process)
        if self.stopped:  # the signal came after the process was started, and before it was added
            process.terminate()
        try:
            yield
        finally:
            self.running.discard(process)


@dataclass
class LastStep:
    """Forwards events, and remembers the last step of a training among them."""

    send: Send
    saving: str = ""  # what a stopped training saves, in words

    def forward(self, event: Event) -> None:
        """Forward an event."""
        if event.type == "progress" and event.data["unit"] == "steps":
            self.saving = f", saving step {event.data['done']:,} or the one after it"
        self.send(event)


@dataclass(frozen=True)
class Job:
    """Requirements of a step that runs concurrently.

    Attributes:
        environment: Its environment variables.
        processes: The group of its processes.
        fork: Function that forks its process (`ForkServers.start`). None: start a new process.
        ray: Function that starts its process on a node of a Ray cluster (`RayNodes.start`). None: use this machine.
    """

    environment: Mapping[str, str]
    processes: Processes
    fork: Start | None = None
    ray: Start | None = None


def python_command(*options: str) -> list[str]:
    """Build the words that start Python without the working folder on its path.

    The folder may have a stray `torch.py`. Unlike `-P`, the variable also reaches processes that this one starts, such
    as torchrun's.

    Args:
        options: Options of `env`.
    """
    return ["env", *options, "PYTHONSAFEPATH=1", sys.executable]


def start_subprocess(
    command: list[str], environment: Mapping[str, str], *, errors: int, lock: int
) -> subprocess.Popen[str]:
    """Start a command that writes events to its standard output.

    Args:
        command: The command.
        environment: Its environment variables.
        errors: File descriptor of its standard error.
        lock: File descriptor of the lock that it inherits.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        errors="replace",
        env=environment,
        pass_fds=[lock],
        process_group=0,  # Ctrl-C in a terminal only reaches this process, which then lets the others save
    )


def run_subprocess(start: Start, step: Step, send: Send, lock_descriptor: int, processes: Processes) -> None:
    """Run a prepared step in a process and wait for its end.

    Args:
        start: Starts the process.
        step: The step.
        send: Receives the events that the process writes to its standard output.
        lock_descriptor: File descriptor of the step's lock.
        processes: Holds the process while it runs.

    Raises:
        UserError: If the step reported a mistake of the user.
        Preempted: If a signal stopped the step.
        RuntimeError: If the step failed. The message ends with the last lines of its standard error.
    """
    # The subprocess inherits the lock. If this process is killed, the lock is held until the subprocess ends too.
    errors = step.slot.work / PROCESS_LOG
    with (
        errors.open("wb") as log,
        start(errors=log.fileno(), lock=lock_descriptor) as process,
        processes.of(process),
    ):
        last = LastStep(send)
        try:
            failure = _forward_events(process, last.forward)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                send(Event("log", step.stage.name, {"message": f"stopping{last.saving}"}))
            process.terminate()  # torchrun ends its own processes, so that none is orphaned
            process.wait()
            raise
        process.wait()
    if processes.stopped:
        raise stopped_by([step], processes.stopped[0])
    if process.returncode != 0:
        if failure:
            raise UserError(failure)
        tail = errors.read_text(errors="replace").strip().splitlines()[-ERROR_LINES:]
        raise RuntimeError(f"{step.stage.name}: its process failed:\n" + "\n".join(tail))


def stopped_by(steps: list[Step], number: int) -> Preempted:
    """Build the error for steps that a signal has stopped."""
    names = ", ".join(stage_names(steps))
    by = f"stopped by {signal.Signals(number).name}; the next run resumes from the last checkpoint"
    return Preempted(f"{names}: {by}" if names else by, number)


@contextmanager
def signals_forwarded() -> Iterator[Processes]:
    """Yield processes that SIGTERM and SIGUSR1 stop, so that a training stage saves a checkpoint."""
    processes = Processes()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield processes
        return
    before = {number: signal.signal(number, processes.stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_without_reader(pipe: int) -> None:
    """Send this process SIGTERM once a pipe has no reader: the run that reads its events has been killed."""

    def watch() -> None:
        errors = select.poll()
        errors.register(pipe, 0)  # the closed end is always reported
        errors.poll()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="vfm-reader", daemon=True).start()


def _forward_events(process: Process, send: Send) -> str | None:
    """Forward the events of a process until it ends, and return the message of its first failure, if any.

    Of several processes, one fails first, with a full disk for example. Then the others report that it is gone.
    """
    assert process.stdout
    failure = None
    for line in process.stdout:
        # The process only writes events, but torchrun and code that runs before `vfm step` share its pipe.
        try:
            event = Event.from_json(line)
        except ValueError:
            continue
        if event.type == "run_failed":
            failure = failure or str(event.data["message"])
        else:
            send(event)
    return failure
