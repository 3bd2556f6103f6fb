"""Notices that a process of a training has died or hangs, and ends the others, which would wait for it for hours."""

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
from vfm.train.parallel.dist import World

INTERVAL = 2.0  # seconds between signs of life
SILENCE = 40.0  # seconds without one after which a process is lost; writing a large file holds Python's lock for some
GRACE = 15.0  # seconds for the main thread to end by itself: a collective often fails when a process dies
LOST, DONE = "lost", "done"


class Heartbeat:
    """A thread that writes signs of life into the store of the process group, and watches those of the next process.

    A process on the same machine is lost at once when it dies; one elsewhere, and one that is stopped or stuck with
    Python's lock, after some silence. What a process waits for (data, a collective) is not watched.

    Args:
        store: of the process group, with keys of its own.
        rank: of this process.
        size: number of processes.
        on_lost: called in the thread with a message if a process is lost and the main thread does not end by itself.
        silence: seconds without a sign of life.
        interval: seconds between them.
        grace: seconds for the main thread.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        on_lost: Callable[[str], None],
        *,
        silence: float,
        interval: float = INTERVAL,
        grace: float = GRACE,
    ) -> None:
        self.store, self.rank, self.size, self.on_lost = store, rank, size, on_lost
        self.silence, self.interval, self.grace = silence, interval, grace
        self.message = ""  # what was lost
        # The sign of the next process, and its age, counted in checks: no clock, which runs on while all are stopped.
        self._sign, self._age = "", 0.0
        self._hung = 0  # id of the next process, if it is a hung one of this machine
        self._found, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def lost(self, seconds: float) -> str:
        """Wait some seconds for a message about a lost process; return it, or an empty string."""
        self._found.wait(seconds)
        return self.message

    def end(self, *, done: bool) -> None:
        """Stop the thread; `done` marks this process as one that needs no watching any more."""
        self._ended.set()
        self._thread.join(self.interval)
        if done:
            with suppress(RuntimeError):  # the process with the store may be gone by now
                self.store.set(f"alive-{self.rank}", DONE)

    def kill_hung(self) -> None:
        """Kill the next process if it is a hung one of this machine: torchrun would wait half a minute for its end."""
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
            if not self._ended.wait(self.grace):
                self.on_lost(self.message)

    def _beat(self) -> float:
        self.store.set(f"alive-{self.rank}", f"{time.time_ns()} {_place()} {socket.gethostname()} {os.getpid()}")
        return self.interval

    def _lost_process(self) -> str:
        """Return which process is lost: the next one, or one that another process has found."""
        if self.store.check([LOST]):
            return self.store.get(LOST).decode()
        message = self._judge((self.rank + 1) % self.size)
        if message:
            self.store.set(LOST, message)
            _, place, _, pid = self._sign.split()
            self._hung = int(pid) if place == _place() and not _is_dead(pid) else 0
        return message

    def _judge(self, rank: int) -> str:
        key = f"alive-{rank}"
        sign = self.store.get(key).decode() if self.store.check([key]) else ""
        self._age = self._age + self.interval if sign == self._sign else 0.0
        self._sign = sign
        if not sign or sign == DONE:
            return ""
        _, place, host, pid = sign.split()
        if place == _place() and _is_dead(pid):
            return f"process {rank} of {self.size} died (pid {pid} on {host})"
        if self._age > self.silence:
            return f"process {rank} of {self.size} hangs: no sign of life for {self._age:.0f} s (pid {pid} on {host})"
        return ""


@contextmanager
def watched(world: World, report: Callable[[str], None]) -> Iterator[None]:
    """Watch the processes of a training within the context; nothing is watched in a single process.

    Args:
        world: this process.
        report: called with the message before this process ends itself because its main thread waits.

    Raises:
        UserError: a process was lost, which is named, and a collective failed because of it.
    """
    if world.size == 1:
        yield
        return

    def end(message: str) -> None:
        report(message)
        print(f"process {world.rank} ends: {message}", file=sys.stderr, flush=True)
        beat.kill_hung()  # last: torchrun then ends the others, before they could report
        os._exit(1)

    assert world.store
    beat = Heartbeat(world.store, world.rank, world.size, end, silence=SILENCE)
    done = False
    try:
        yield
        done = True
    except RuntimeError as error:
        if message := beat.lost(GRACE):
            raise UserError(f"{message}; the next run resumes from the last checkpoint") from error
        raise
    finally:
        beat.end(done=done)


def _place() -> str:
    """Return what processes share that see one another's ids: the machine and the namespace of ids."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: only silence counts
        return f"{socket.gethostname()}/{os.getpid()}"


def _is_dead(pid: str) -> bool:
    """Return whether a process of this machine has ended; one that nobody has waited for yet is a zombie (Z)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
