"""Start the process of a step on a node of a Ray cluster, and read its lines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator

from vfm.flow.execution.subprocesses import python_command


class Node:
    """A Ray actor that runs one step as a separate process. A signal can reach this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._signal: int | None = None

    def look_for(self, paths: list[str]) -> tuple[str, str]:
        """Find the name of this node, and the first of some paths that it does not have, or an empty text."""
        missing = [path for path in paths if not os.path.exists(path)]
        return socket.gethostname(), "".join(missing[:1])

    def run(self, words: list[str], variables: dict[str, str], directory: str, log: str) -> Iterator[str | int]:
        """Run Python, and yield the lines that it writes, and then its exit code.

        Args:
            words: Its arguments.
            variables: Variables to add to the environment.
            directory: Its working folder.
            log: File for its standard error.
        """
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [*python_command(), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, **variables},
                cwd=directory,
                process_group=0,
            )
        if self._signal:  # it came before the process
            self._process.send_signal(self._signal)
        assert self._process.stdout
        for line in self._process.stdout:  # noqa: UP028  (Ray sends into the generator, and a file takes nothing)
            yield line
        yield self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, also if it has not started yet."""
        self._signal = number
        if self._process:
            self._process.send_signal(number)
