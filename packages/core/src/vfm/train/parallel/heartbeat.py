"""Detects that a process of a training run has died or hangs, and ends the others, which would wait for hours."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from vfm.base import UserError
from vfm.train.parallel.deadline import dump_stacks
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.parallel.flight_recorder import dump_collectives
from vfm.train.parallel.progress import ENDED, Position, Sighting, hanging

INTERVAL = 2.0  # seconds between heartbeats
SILENCE = 40.0  # seconds without a sign until a process is lost; writing a large file holds Python's lock for some
GRACE = 15.0  # seconds for the main thread to end by itself, since a collective often fails when a process dies
LOST = "lost"
DONE = "done"


class Heartbeat:
    """A thread that writes heartbeats into the store of the process group, and watches the next process' heartbeats.

    A process on the same machine counts as lost as soon as it dies. A process on another machine, or one that is
    stopped or stuck with Python's lock, counts as lost after some seconds of silence. If a process sends heartbeats but
    makes no progress, because its data, a collective or an evaluation hangs, the first process detects it.

    Args:
        store: Store of the process group, with separate keys.
        rank: Rank of this process.
        size: Number of processes.
        on_lost: Called in the thread with a message if a process is lost and the main thread does not end by itself.
        silence: Seconds without a heartbeat until a process counts as lost.
        position: Step and phase of this process. They are published with each heartbeat.
        patience: Seconds without progress until a process counts as hanging (`vfm.train.parallel.progress`).
        interval: Seconds between heartbeats.
        grace: Seconds for the main thread to end by itself.
        stacks: File for the stacks of this process' threads, written as soon as a process is lost.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        on_lost: Callable[[str], None],
        *,
        silence: float,
        position: Position,
        patience: float,
        interval: float,
        grace: float,
        stacks: Path,
    ) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self.on_lost = on_lost
        self.silence = silence
        self.interval = interval
        self.grace = grace
        self.position = position
        self.patience = patience
        self.stacks = stacks
        self.message = ""  # describes the lost process
        # The sign of the next process, and its age, counted in checks, because a clock runs on while all are stopped.
        self._sign = ""
        self._age = 0.0
        self._place, self._idle = position.place, 0.0  # the last position, and for how long it has not changed
        self._hung = 0  # id of the next process if it runs here and hangs
        self._found = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def lost(self, seconds: float) -> str:
        """Wait some seconds for a message about a lost process. The message is empty if there is none."""
        self._found.wait(seconds)
        return self.message

    def end(self, *, done: bool) -> None:
        """Stop the thread. `done` marks this process as finished, so that it is no longer watched."""
        self._ended.set()
        self._thread.join(self.interval)
        if done:
            with suppress(RuntimeError):  # the process with the store may be gone by now
                self.store.set(f"at-{self.rank}", ENDED)
                self.store.set(f"alive-{self.rank}", DONE)

    def kill_hung(self) -> None:
        """Kill the next process if it runs on this machine and hangs, as torchrun would wait half a minute for it."""
        if self._hung:
            with suppress(OSError):
                os.kill(self._hung, signal.SIGKILL)

    def _run(self) -> None:
        try:
            while not self.message and not self._ended.wait(self._beat()):
                self.message = self._lost_process()
        except RuntimeError as error:  # the store is gone, with the process or the machine that had it
            self.message = f"process 0 or its machine cannot be reached ({str(error).splitlines()[0]})"
        if self.message and not self._ended.is_set():
            self._found.set()
            dump_stacks(self.stacks)
            dump_collectives(self.stacks.with_name(f"collectives-{self.stacks.stem.rpartition('-')[2]}.json"))
            if not self._ended.wait(self.grace):
                self.on_lost(self.message)

    def _beat(self) -> float:
        # The time only makes each sign different from the one before. Clocks of two machines are never compared.
        sign = f"{time.time_ns()} {_pid_namespace()} {socket.gethostname()} {os.getpid()}"
        place = self.position.place
        self._idle = self._idle + self.interval if place == self._place else 0.0
        self._place = place
        self.store.set(f"at-{self.rank}", str(Sighting(*place, self._idle)))
        self.store.set(f"alive-{self.rank}", sign)
        return self.interval

    def _lost_process(self) -> str:
        """Describe the lost process that this process or another one has detected.

        The text is empty if there is none.
        """
        if self.store.check([LOST]):
            return self.store.get(LOST).decode()
        message = self._check((self.rank + 1) % self.size)
        if message:
            _, namespace, _, pid = self._sign.split()
            self._hung = int(pid) if namespace == _pid_namespace() and not _is_dead(pid) else 0
        elif self.rank == 0:
            message = self._hanging()
        if message:
            self.store.set(LOST, message)
        return message

    def _hanging(self) -> str:
        keys = [f"at-{rank}" for rank in range(self.size)]
        if not self.store.check(keys):  # a process has not begun yet
            return ""
        return hanging([Sighting.parse(text.decode()) for text in self.store.multi_get(keys)], self.patience)

    def _check(self, rank: int) -> str:
        key = f"alive-{rank}"
        sign = self.store.get(key).decode() if self.store.check([key]) else ""
        self._age = self._age + self.interval if sign == self._sign else 0.0
        self._sign = sign
        if not sign or sign == DONE:
            return ""
        _, namespace, host, pid = sign.split()
        if namespace == _pid_namespace() and _is_dead(pid):
            return f"process {rank} of {self.size} died (pid {pid} on {host})"
        if self._age > self.silence:
            return f"process {rank} of {self.size} hangs: no sign of life for {self._age:.0f} s (pid {pid} on {host})"
        return ""


@contextmanager
def watched(
    world: DistributedWorld, report: Callable[[str], None], position: Position, patience: float, stacks: Path
) -> Iterator[None]:
    """Watch the processes of a training run within the context. A single process is not watched.

    Args:
        world: This process.
        report: Called with the message before this process is ended because its main thread waits.
        position: Step and phase of this process. The training loop changes it.
        patience: Seconds without progress until a process counts as hanging.
        stacks: Folder for the stacks of each process' threads.

    Raises:
        UserError: If a collective failed because a process was lost. The message names the process.
    """
    if world.size == 1:
        yield
        return

    def end(message: str) -> None:
        message = f"{message} (stacks of all processes: {stacks}/stacks-*.txt)"
        report(message)
        print(f"process {world.rank} ends: {message}", file=sys.stderr, flush=True)
        beat.kill_hung()  # last, because torchrun then ends the others before they can report
        os._exit(1)

    assert world.store
    beat = Heartbeat(
        world.store, world.rank, world.size, end,
        silence=SILENCE, position=position, patience=patience, interval=INTERVAL, grace=GRACE,
        stacks=stacks / f"stacks-{world.rank}.txt",
    )  # fmt: skip
    done = False
    try:
        yield
        done = True
    except RuntimeError as error:
        message = beat.lost(GRACE)
        if message:
            raise UserError(f"{message}; the next run resumes from the last checkpoint") from error
        raise
    finally:
        beat.end(done=done)


def _pid_namespace() -> str:
    """Identify the machine and the namespace of process ids. Processes that share both see one another's ids."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # without Linux, only silence is detected
        return f"{socket.gethostname()}/{os.getpid()}"


def _is_dead(pid: str) -> bool:
    """Check whether a process on this machine has ended. A zombie (Z) has, but its parent has not waited for it."""
    try:
        # The state follows the program's name, which stands in brackets and may contain brackets and spaces.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
