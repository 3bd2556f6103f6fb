"""Several steps at a time, each in a process of its own, as soon as its inputs are there.

What a step makes does not hang on the others, so the artifacts are those of one step after another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock

from vfm.events import Event
from vfm.flow.children import Send
from vfm.flow.plan import Step

RunOne = Callable[[Step, Send, Mapping[str, str]], bool]
GPUS = Path("/proc/driver/nvidia/gpus")


def run_together(steps: Sequence[Step], run_one: RunOne, send: Send, jobs: int) -> bool:
    """Runs all steps, at most `jobs` at a time; gives whether any ran.

    Two steps never read one data set at the same time: the second reads the image features that the first has kept.
    After a mistake what runs is let finish, nothing more is begun, and the first mistake is raised.
    """
    lock = Lock()

    def tell(event: Event) -> None:
        with lock:
            send(event)

    waiting, running, places = list(steps), dict[Future[bool], tuple[Step, int]](), list(range(jobs))
    made, problem = False, None
    with ThreadPoolExecutor(jobs) as pool:
        while running or (waiting and not problem):
            while places and not problem and (step := _next(waiting, [step for step, _ in running.values()])):
                waiting.remove(step)
                place = places.pop(0)
                running[pool.submit(run_one, step, tell, _environment(step, place, jobs))] = (step, place)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                places.append(running.pop(future)[1])
                if error := future.exception():
                    problem = problem or error
                else:
                    made |= future.result()
    if problem:
        raise problem
    return made


def _next(waiting: Sequence[Step], running: Sequence[Step]) -> Step | None:
    """The first step whose inputs are there and whose data nobody reads now."""
    unfinished = {step.stage.name for step in (*waiting, *running)}
    read = {_data(step) for step in running} - {None}
    return next((step for step in waiting if not unfinished & set(step.inputs) and _data(step) not in read), None)


def _data(step: Step) -> str | None:
    return getattr(step.stage, "data", None)


def _environment(step: Step, place: int, jobs: int) -> dict[str, str]:
    """A share of the cores, and one of the GPUs where the step leaves open which."""
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    gpus = _gpus() if step.stage.runtime.device in ("auto", "cuda") else []
    return threads | ({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {})


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    return [str(number) for number, _ in enumerate(GPUS.iterdir())] if GPUS.is_dir() else []
