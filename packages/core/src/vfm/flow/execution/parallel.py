"""Several steps at a time, each in a subprocess, as soon as its inputs exist.

The artifact of a step depends on its inputs only, so the results are those of one step after another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock

from vfm.flow.execution.subprocesses import Send
from vfm.flow.plan.plan import Step
from vfm.interfaces import Event

RunOne = Callable[[Step, Send, Mapping[str, str]], bool]
GPUS = Path("/proc/driver/nvidia/gpus")


def run_in_parallel(steps: Sequence[Step], run_one: RunOne, send: Send, jobs: int) -> bool:
    """Run all steps, at most `jobs` at a time, and return whether any of them had to run.

    Two steps never read the same dataset at the same time, so that the second finds the image features that the first
    has stored. After a failure, running steps finish, no further step starts, and the first error is raised.

    Args:
        steps: the steps in an order in which they could run one by one.
        run_one: runs a step with additional environment variables; returns False if its artifact was cached.
        send: receives all events, never two at once.
        jobs: number of steps at a time.
    """
    lock = Lock()

    def send_one(event: Event) -> None:
        with lock:
            send(event)

    waiting, running, places = list(steps), dict[Future[bool], tuple[Step, int]](), list(range(jobs))
    made, failure = False, None
    with ThreadPoolExecutor(jobs) as pool:
        while running or (waiting and not failure):
            while places and not failure and (step := _next(waiting, [step for step, _ in running.values()])):
                waiting.remove(step)
                place = places.pop(0)
                running[pool.submit(run_one, step, send_one, _environment(step, place, jobs))] = (step, place)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                places.append(running.pop(future)[1])
                if error := future.exception():
                    failure = failure or error
                else:
                    made |= future.result()
    if failure:
        raise failure
    return made


def _next(waiting: Sequence[Step], running: Sequence[Step]) -> Step | None:
    """Return the first step whose inputs are finished and whose datasets no running step reads."""
    unfinished = {step.stage.name for step in (*waiting, *running)}
    read = {name for step in running for name in _datasets(step)}
    return next((step for step in waiting if not unfinished & set(step.inputs) and not read & _datasets(step)), None)


def _datasets(step: Step) -> set[str]:
    """Return the datasets that a step reads: its `data`, one or several."""
    data = getattr(step.stage, "data", None)
    return {data} if isinstance(data, str) else set(data or ())


def _environment(step: Step, place: int, jobs: int) -> dict[str, str]:
    """Return variables that give each process of a step its share of the cores, and the step one of the GPUs.

    A step that names a device, or takes one for each of several processes, chooses among all of them.
    """
    runtime = step.stage.runtime
    share = max(1, (os.cpu_count() or 1) // (jobs * runtime.processes))
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(share)}
    gpus = _gpus() if runtime.device in ("auto", "cuda") and runtime.processes == 1 else []
    return threads | ({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {})


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    return [str(number) for number, _ in enumerate(GPUS.iterdir())] if GPUS.is_dir() else []
