"""Steps on a Ray cluster, each in a process on the node that Ray chooses: `vfm run RECIPE --jobs ray`.

A step waits until a node has its CPUs and GPUs free. All nodes need the store, the data and the packages under the same
paths. An actor on the node starts the process of the step, and streams the lines that it writes, which are events.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from vfm.base import UserError
from vfm.flow.execution.job_sizes import uses_gpu
from vfm.flow.execution.ray_node import Node
from vfm.flow.execution.subprocesses import PROCESS_LOG, Send
from vfm.flow.plan.plan import Step
from vfm.flow.plan.store import STEP_FILE
from vfm.interfaces import Event

ROOM_SECONDS = 5.0  # until the log says that a step waits; a free node answers in one or two


class RayProcess:
    """Process of a step on a node, with the methods of `subprocess.Popen` that `run_subprocess` calls."""

    def __init__(self, ray: Any, node: Any, name: str, lines: Iterator[Any]) -> None:
        """Follow a process.

        Args:
            ray: The module, connected.
            node: The actor that started the process.
            name: Name of the step.
            lines: References to the lines that the process writes, and then to its exit code.
        """
        self.returncode: int | None = None
        self._ray = ray
        self._node = node
        self._name = name
        self.stdout = self._read(lines)

    def _read(self, lines: Iterator[Any]) -> Iterator[str]:
        try:
            for reference in lines:
                line = self._ray.get(reference)
                if isinstance(line, int):
                    self.returncode = line
                else:
                    yield line
        except self._ray.exceptions.RayError as error:
            self.returncode = -signal.SIGKILL
            raise _lost(self._name, error) from None

    def terminate(self) -> None:
        """Send SIGTERM, unless the process has ended."""
        self._node.send_signal.remote(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self._node.send_signal.remote(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end, and return the exit code, or -9 if Ray has lost the process."""
        for _ in self.stdout:
            pass
        assert self.returncode is not None
        return self.returncode

    def __enter__(self) -> RayProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.kill(self._node)  # which frees its CPUs and GPUs


class RayNodes:
    """Starts processes of steps on the nodes of a cluster."""

    def __init__(self, ray: Any) -> None:
        """Look up what the cluster has.

        Args:
            ray: The module, connected.
        """
        self._ray = ray
        self._resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def start(
        self, step: Step, send: Send, words: Sequence[str], variables: Mapping[str, str], *, errors: int, lock: int
    ) -> RayProcess:
        """Start the process of a step on a node.

        The process holds its own lock in the work folder, so this run's, `lock`, is not handed over.

        Args:
            step: The step, whose work folder is prepared.
            send: Receives a message with the name of the node, and another one before it if the step has to wait.
            words: Arguments of Python.
            variables: Variables to add to the environment of the node.
            errors: Standard error of a process on this machine.
            lock: Lock of a process on this machine.

        Raises:
            UserError: If Ray cannot start it, or the node does not see the work folder.
        """
        name = step.stage.name
        work = step.slot.work.resolve()
        cpus, gpus = self.size_of(step)
        # Two calls at a time: a signal arrives while lines are read.
        node = self._ray.remote(Node).options(num_cpus=cpus, num_gpus=gpus, max_concurrency=2).remote()
        answer = node.look_for.remote([str(work / STEP_FILE), os.getcwd()])
        try:
            if not self._ray.wait([answer], timeout=ROOM_SECONDS)[0]:
                send(_log(name, f"waits for a node with {cpus} free CPUs and {gpus} free GPUs"))
            host, missing = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            raise _lost(name, error) from None
        if missing:
            self._ray.kill(node)
            raise UserError(f"{name}: node {host} does not see {missing}; all nodes of a Ray cluster need it")
        send(_log(name, f"runs on {host}"))
        run = node.run.options(num_returns="streaming")
        lines = run.remote(list(words), dict(variables), os.getcwd(), str(work / PROCESS_LOG))
        return RayProcess(self._ray, node, name, iter(lines))

    def size_of(self, step: Step) -> tuple[int, int]:
        """Count the CPUs and GPUs that a step asks for.

        A stage on `device: auto` uses a GPU if the cluster has one. No step asks for more CPUs than the largest node
        has, for which it would wait for ever.
        """
        stage = step.stage
        processes = stage.runtime.processes if stage.in_processes else 1
        cpus = processes * max(stage.runtime.threads or 1, stage.runtime.num_workers)
        most_cpus = max((int(node.get("CPU", 0)) for node in self._resources), default=0)
        has_gpus = stage.runtime.device != "auto" or any(node.get("GPU") for node in self._resources)
        return min(cpus, max(1, most_cpus)), processes if uses_gpu(stage) and has_gpus else 0


def _log(name: str, message: str) -> Event:
    return Event("log", name, {"message": message})


def _lost(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{name}: Ray has lost its process, and the next run resumes from the last checkpoint: {reason}")
