"""A process that imports what steps need, and forks a process for each step.

A step of `--jobs` then starts in a fraction of a second, where Python with torch and diffusers takes five seconds of
processor time. Modules of vfm that a step has imported later are imported before the next fork. Only for machines
without a GPU: CUDA cannot be used in a process that was forked after its start.

    with ForkServers() as servers:
        process = servers.start(["step", "DIR"], os.environ, ["torch"], errors=2, lock=5)
        process.wait()
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from types import TracebackType
from typing import IO, Any, NoReturn

from vfm.flow.execution.subprocesses import Process, python_command, start_subprocess

SIZE_BYTES = 8  # of a request's number of bytes, before the request: it has all environment variables, up to 2 MB
FILES = 4  # of a request: standard output and error, the lock, and the pipe for the exit code


def can_fork() -> bool:
    """Check whether this system has handles of processes. Linux has them from 5.3 on, outside some sandboxes."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class ForkedProcess:
    """Process of a forked step, with the methods of `subprocess.Popen` that `run_subprocess` calls."""

    def __init__(self, pid: int, output: int, status: int) -> None:
        """Open the pipes of a process.

        Args:
            pid: Its number.
            output: Read end of the pipe that is its standard output.
            status: Read end of the pipe to which it writes its exit code.
        """
        self.stdout: IO[str] = os.fdopen(output, encoding="utf-8", errors="replace")
        self.returncode: int | None = None
        self._status = status
        self._handle: int | None = os.pidfd_open(pid)  # unlike the number, it never denotes a later process

    def terminate(self) -> None:
        """Send SIGTERM, unless the process has ended."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self._send(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end, and return the exit code, or -9 if a signal ended the process."""
        if self.returncode is None:
            code = os.read(self._status, 1)
            while os.read(self._status, 1):  # the pipe closes when the process has ended
                pass
            self.returncode = code[0] if code else -signal.SIGKILL
        return self.returncode

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.stdout.close()
        self.wait()
        os.close(self._status)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _send(self, number: signal.Signals) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # it has ended, or a thread closes its handle at this moment
                signal.pidfd_send_signal(self._handle, number)


class ForkServers:
    """Starts the servers of a run.

    There is one for each number of threads, since libraries read OMP_NUM_THREADS on loading.
    """

    def __init__(self) -> None:
        self._servers: dict[str | None, tuple[subprocess.Popen[bytes], socket.socket]] = {}
        self._lock = threading.Lock()

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], modules: Sequence[str], *, errors: int, lock: int
    ) -> AbstractContextManager[Process]:
        """Fork a process for a command of `vfm`. If its server has ended, start the process without it.

        Args:
            words: Arguments of the command.
            environment: Its environment variables.
            modules: Modules to import before the fork.
            errors: File descriptor of its standard error.
            lock: File descriptor of the lock that it inherits.
        """
        request = {"words": list(words), "environment": dict(environment), "modules": list(modules)}
        forked = self._fork(json.dumps(request).encode(), environment, errors, lock)
        if forked:
            return forked
        command = [*python_command(), "-m", "vfm", *words]
        return start_subprocess(command, environment, errors=errors, lock=lock)

    def _fork(self, request: bytes, environment: Mapping[str, str], errors: int, lock: int) -> ForkedProcess | None:
        """Send a request to a server.

        Returns:
            The process, or None if the server has ended. It is then forgotten.
        """
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        with self._lock:  # requests are answered one after another
            answer = b""
            try:
                server = self._server(environment)
                socket.send_fds(server, [len(request).to_bytes(SIZE_BYTES)], [output_end, errors, lock, status_end])
                server.sendall(request)
                answer = server.recv(32)
            except OSError:  # the server cannot start, or has ended
                pass
            finally:
                os.close(output_end)
                os.close(status_end)
            if answer:  # before the next request, after which the server may collect the process
                return ForkedProcess(int(answer), output, status)
            ended = self._servers.pop(environment.get("OMP_NUM_THREADS"), None)
            if ended:
                _end(*ended)
        os.close(output)  # a process that was still forked ends without a reader
        while os.read(status, 1):
            pass
        os.close(status)
        return None

    def __enter__(self) -> ForkServers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for process, control in self._servers.values():
                _end(process, control)

    def _server(self, environment: Mapping[str, str]) -> socket.socket:
        """Return the connection to the server for an environment. The first request starts it."""
        threads = environment.get("OMP_NUM_THREADS")
        if threads not in self._servers:
            ours, theirs = socket.socketpair()
            with theirs:
                command = [*python_command(), "-m", "vfm.flow.execution.fork_server", str(theirs.fileno())]
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=dict(environment),
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C only reaches the run
                )
            self._servers[threads] = process, ours
        return self._servers[threads][1]


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """End a server. It waits for the processes that it has forked."""
    with contextlib.suppress(OSError):  # it has ended
        control.shutdown(socket.SHUT_RDWR)  # unlike closing, also if a process forked here has a copy of the socket
    control.close()
    process.wait()


def serve(control: socket.socket) -> None:
    """Fork a process for each request, until the other end is closed."""
    imported = os.memfd_create("modules")  # names of modules, from processes that have ended
    # Processes are collected by their numbers, never by a handler of SIGCHLD: modules also run commands as they load.
    forked: list[int] = []
    while True:
        size, descriptors, _, _ = socket.recv_fds(control, SIZE_BYTES, FILES)
        if not size:
            break
        request = json.loads(control.recv(int.from_bytes(size), socket.MSG_WAITALL))
        names = os.pread(imported, os.fstat(imported).st_size, 0).decode().split()
        for module in [*request["modules"], *names]:
            with contextlib.suppress(Exception):  # the step reports it, when it imports the module itself
                import_module(module)
        forked = [pid for pid in forked if not os.waitpid(pid, os.WNOHANG)[0]]
        pid = os.fork()
        if not pid:
            control.close()
            atexit.register(_note_modules, imported, set(sys.modules))
            _run(request, *descriptors)
        forked.append(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(str(pid).encode())
    for pid in forked:  # with their processor time
        os.waitpid(pid, 0)


def _note_modules(file: int, before: set[str]) -> None:
    """Write the names of vfm's modules that were imported since the fork, for the next one."""
    names = sorted(name for name in sys.modules.keys() - before if name.startswith("vfm"))
    # All forked processes share the file's position, so each writes behind the others.
    os.write(file, "\n".join([*names, ""]).encode())


def _run(request: dict[str, Any], output: int, errors: int, lock: int, status: int) -> NoReturn:
    """Run a command of `vfm` in this forked process, as if Python had started with it."""
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.close(output)
    os.close(errors)
    # The server's streams have properties of its own files, such as whether they can seek.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.set_inheritable(lock, True)
    sys.argv = ["vfm", *request["words"]]
    code = 1
    try:
        runpy.run_module("vfm", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException:
        traceback.print_exc()
    os.write(status, bytes([code]))
    sys.exit(code)


def _exit_code(end: SystemExit) -> int:
    """Find the exit code that Python would have, with a text on the standard error."""
    if isinstance(end.code, int):
        return end.code & 0xFF
    if end.code is not None:
        print(end.code, file=sys.stderr)
    return int(end.code is not None)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
