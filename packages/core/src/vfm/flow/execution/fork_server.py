"""A process that imports what steps need, and forks a process for each step.

A step of `--jobs` then starts in a fraction of a second, where Python with torch and diffusers takes five seconds of
processor time. Only for machines without a GPU: CUDA cannot be used in a process that was forked after its start.

    with ForkServers() as servers:
        process = servers.start(["step", "DIR"], os.environ, ["torch"], errors=2, lock=5)
        process.wait()
"""

from __future__ import annotations

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
from importlib import import_module
from types import TracebackType
from typing import IO, Any, NoReturn

from vfm.flow.execution.subprocesses import python_command

REQUEST_BYTES = 200_000  # of a message, which has all environment variables
FILES = 4  # of a request: standard output and error, the lock, and the pipe for the exit code


class ForkedProcess:
    """A forked step, with the part of `subprocess.Popen` that `run_subprocess` uses."""

    def __init__(self, pid: int, output: int, status: int) -> None:
        """Open the pipes of a process.

        Args:
            pid: its number.
            output: read end of the pipe that is its standard output.
            status: read end of the pipe to which it writes its exit code.
        """
        self.stdout: IO[str] = os.fdopen(output, encoding="utf-8", errors="replace")
        self.returncode: int | None = None
        self._status = status
        self._handle: int | None = None  # unlike the number, it never denotes a later process
        with contextlib.suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)

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
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)


class ForkServers:
    """The servers of a run, one for each number of threads, since libraries read OMP_NUM_THREADS when they load."""

    def __init__(self) -> None:
        self._servers: dict[str | None, tuple[subprocess.Popen[bytes], socket.socket]] = {}
        self._lock = threading.Lock()

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], modules: Sequence[str], *, errors: int, lock: int
    ) -> ForkedProcess:
        """Fork a process for a command of `vfm`.

        Args:
            words: arguments of the command.
            environment: its environment variables.
            modules: modules to import before the fork.
            errors: file descriptor of its standard error.
            lock: file descriptor of the lock that it inherits.
        """
        request = json.dumps({"words": list(words), "environment": dict(environment), "modules": list(modules)})
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        try:
            with self._lock:  # requests are answered one after another
                server = self._server(environment)
                socket.send_fds(server, [request.encode()], [output_end, errors, lock, status_end])
                answer = server.recv(32)
            if not answer:
                raise RuntimeError("the process that forks the steps has ended")
        except BaseException:
            os.close(output)
            os.close(status)
            raise
        finally:
            os.close(output_end)
            os.close(status_end)
        return ForkedProcess(int(answer), output, status)

    def __enter__(self) -> ForkServers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, control in self._servers.values():
            control.close()  # which ends the server
            process.wait()

    def _server(self, environment: Mapping[str, str]) -> socket.socket:
        """Return the connection to the server for an environment. The first request starts it."""
        threads = environment.get("OMP_NUM_THREADS")
        if threads not in self._servers:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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


def serve(control: socket.socket) -> None:
    """Fork a process for each request, until the other end is closed."""
    signal.signal(signal.SIGCHLD, _collect)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES, FILES)
        if not message:
            return
        request = json.loads(message)
        for module in request["modules"]:
            with contextlib.suppress(Exception):  # the step reports it, when it imports the module itself
                import_module(module)
        pid = os.fork()
        if not pid:
            control.close()
            _run(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(str(pid).encode())


def _collect(*_: object) -> None:
    """Collect processes that have ended, with their processor time."""
    with contextlib.suppress(ChildProcessError):  # there is none
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _run(request: dict[str, Any], output: int, errors: int, lock: int, status: int) -> NoReturn:
    """Run a command of `vfm` in this forked process, as if Python had started with it."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.close(output)
    os.close(errors)
    # The server's streams have properties of its own files, such as whether they can seek.
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.set_inheritable(lock, True)
    sys.argv = ["vfm", *request["words"]]
    code = 1
    try:
        runpy.run_module("vfm", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    os.write(status, bytes([code]))
    sys.exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
