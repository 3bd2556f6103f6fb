"""Concurrent steps, each in a subprocess, started as soon as its inputs exist: `vfm run RECIPE --jobs 2`.

The artifact of a step only depends on its inputs, so the results are the same as one step after another. They are
identical in every bit if `runtime.threads` sets the number of threads, since the order of sums changes their rounding.
If it does not, a step gets its share of the cores as `runtime.threads`, which the manifest records.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from queue import Empty, SimpleQueue
from typing import Literal

from vfm.base import UserError, connected_ray
from vfm.flow.execution.devices import Devices, environment_of
from vfm.flow.execution.durations import longest_paths
from vfm.flow.execution.fork_server import ForkServers, can_fork
from vfm.flow.execution.ray_jobs import RayNodes
from vfm.flow.execution.subprocesses import Job, Processes, Send, Start, signals_forwarded, stopped_by
from vfm.flow.plan.plan import Step, stage_names
from vfm.interfaces import Evaluation, Event, Preempted

RunOne = Callable[[Step, Send, Job], bool]
Jobs = int | Literal["ray"]
EACH_CORE = os.cpu_count() or 1


def check_jobs(jobs: Jobs) -> None:
    """Check the number of concurrent steps.

    Raises:
        UserError: If it is neither a positive integer nor "ray".
    """
    if jobs != "ray" and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise UserError(f"jobs: expected an integer from 1 on or ray, got {jobs!r}")


def run_in_parallel(steps: Sequence[Step], run_one: RunOne, send: Send, jobs: Jobs) -> bool:
    """Run all steps, at most `jobs` at a time, or as many as a Ray cluster has room for.

    If a step fails, steps that do not need it still run. After SIGTERM, SIGUSR1 or Ctrl-C, running steps save and end.

    Args:
        steps: The steps in an order in which they could run one by one.
        run_one: Runs a step as a job. It returns False if the artifact was cached.
        send: Receives all events, one after another.
        jobs: Number of concurrent steps. ray: they run on the cluster at RAY_ADDRESS, or on one that is started here.

    Returns:
        Whether any step had to run.

    Raises:
        Preempted: If a signal stopped the steps.
        UserError: If all failures were mistakes of the user, one line each. Otherwise the first other error is raised.
    """
    if jobs == "ray":
        # After the connection, since Ray also handles SIGTERM.
        with connected_ray(os.environ.get("RAY_ADDRESS")) as ray, signals_forwarded() as processes:
            # Ray shares out the GPUs, and decides how many steps run.
            return _Queue(steps, run_one, send, len(steps), processes, Devices([]), ray=RayNodes(ray).start).run()
    devices = Devices()
    forks = can_fork() and not devices.all
    with signals_forwarded() as processes, ForkServers() if forks else nullcontext() as servers:
        fork = servers.start if servers else None
        return _Queue(steps, run_one, send, jobs, processes, devices, fork=fork).run()


class _Queue:
    """The waiting steps, the running ones, each in a thread, and the failures."""

    def __init__(
        self,
        steps: Sequence[Step],
        run_one: RunOne,
        send: Send,
        jobs: int,
        processes: Processes,
        devices: Devices,
        *,
        fork: Start | None = None,
        ray: Start | None = None,
    ) -> None:
        seconds = longest_paths(steps)
        self.needs = _needs(steps)
        self.waiting = sorted(steps, key=lambda step: -seconds[step.stage.name])  # stable: the plan's order breaks ties
        self.running: dict[str, tuple[Step, list[str]]] = {}  # steps with their GPUs
        self.unfinished = set(stage_names(steps))
        self.failures: dict[str, BaseException] = {}
        self.stopped: list[Step] = []
        self.any_ran = False
        self.devices = devices
        self.processes = processes
        self.jobs = jobs
        self.fork = fork
        self.ray = ray
        self.run_one = run_one
        self.send = send
        self.lock = threading.Lock()
        self.ended: SimpleQueue[tuple[str, bool | BaseException]] = SimpleQueue()

    def run(self) -> bool:
        try:
            self._start_all()
            while self.running:
                end = self._next_end()
                if not end:
                    break
                self._finish(*end)
                self._start_all()
        except BaseException:  # Ctrl-C. A second one kills the processes
            self._end_processes()
            raise
        if self.processes.stopped:
            raise stopped_by(self.stopped, self.processes.stopped[0])
        if self.failures:
            self._report_left()
            raise _one_error(list(self.failures.values()))
        return self.any_ran

    def _start_all(self) -> None:
        """Start steps, longest path first, until `jobs` are running or none can start."""
        blocked = False  # if a step waits for GPUs, steps with shorter paths must not take them
        for step in list(self.waiting):
            if self.processes.stopped or len(self.running) == self.jobs:
                return
            if not self._is_ready(step) or (blocked and step.stage.on_device):
                continue
            gpus = [] if step.status == "cached" else self.devices.take(step.stage)
            if gpus is None:
                blocked = True
                continue
            self.waiting.remove(step)
            self.running[step.stage.name] = (step, gpus)
            # A daemon thread, so that waiting for another run's lock does not keep the interpreter from ending.
            threading.Thread(target=self._run, args=(step, gpus), name=step.stage.name, daemon=True).start()

    def _is_ready(self, step: Step) -> bool:
        """Check whether its inputs exist, and no running evaluation stores features that this step could read."""
        features = _features(step)
        waits_for_features = any(features & _features(other) for other, _ in self.running.values())
        return not self.needs[step.stage.name] & self.unfinished and not waits_for_features

    def _run(self, step: Step, gpus: list[str]) -> None:
        # The cores of this machine say nothing about a cluster's nodes: open numbers are 1 there.
        runtime = step.stage.runtime.among(EACH_CORE if self.ray else self.jobs)
        shared = replace(step, stage=step.stage.model_copy(update={"runtime": runtime}))
        variables = {"OMP_NUM_THREADS": str(runtime.threads), **environment_of(step.stage, gpus)}
        end: bool | BaseException
        try:
            end = self.run_one(shared, self._send, Job(variables, self.processes, self.fork, self.ray))
        except BaseException as error:
            end = error
        self.ended.put((step.stage.name, end))

    def _send(self, event: Event) -> None:
        with self.lock:
            self.send(event)

    def _next_end(self) -> tuple[str, bool | BaseException] | None:
        """Wait for the next step to end.

        The result is None if the remaining steps wait for locks, and may not start.
        """
        while True:
            try:
                return self.ended.get(timeout=1)
            except Empty:
                if self.processes.stopped and not self.processes.running:
                    return None

    def _finish(self, name: str, end: bool | BaseException) -> None:
        step, gpus = self.running.pop(name)
        self.devices.give_back(gpus)
        if not isinstance(end, BaseException):
            self.unfinished.discard(name)
            self.any_ran |= end
        elif isinstance(end, Preempted):
            self.stopped.append(step)
        else:
            self.failures[name] = end
            self._send(Event("stage_failed", name, {"message": str(end) or type(end).__name__}))

    def _end_processes(self) -> None:
        self.processes.stop(signal.SIGTERM)
        try:
            while self.processes.running:
                time.sleep(0.05)
        except BaseException:
            for process in tuple(self.processes.running):
                process.kill()
            raise

    def _report_left(self) -> None:
        names = sorted(self.unfinished - set(self.failures))
        if names:
            self._send(Event("log", None, {"message": f"not run, since they need what failed: {', '.join(names)}"}))


def _needs(steps: Sequence[Step]) -> dict[str, set[str]]:
    """Find the steps that must end before each step.

    They are its inputs, and an earlier step that makes the same artifact.
    """
    names = set(stage_names(steps))
    first: dict[str, str] = {}
    needs = {}
    for step in steps:
        same = first.setdefault(step.slot.name, step.stage.name)
        needs[step.stage.name] = ({*step.inputs, same} & names) - {step.stage.name}
    return needs


def _features(step: Step) -> set[tuple[str, str]]:
    """List the pairs of model and dataset whose features an evaluation may store, or read if they are stored."""
    if not isinstance(step.stage, Evaluation):
        return set()
    models = set(step.stage.models)
    return set(product(models, set(step.inputs) - models))


def _one_error(errors: list[BaseException]) -> BaseException:
    for error in errors:
        if not isinstance(error, UserError):
            return error
    return UserError("\n".join(map(str, errors)))
