"""Choose GPUs, processor cores, memory and time of a stage's job from its settings and its estimated cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vfm.base import UserError, did_you_mean
from vfm.flow.execution.durations import without_seed
from vfm.interfaces import PEAK_TFLOPS, UTILISATION, Cost, Evaluation, Stage, seconds

SLACK = 3  # multiple of the estimated time, for slower devices and evaluations
START_MINUTES = 30
UNKNOWN_MINUTES = 240
THREADS = 4  # of a process whose `runtime.threads` is open
PROCESS_GIB = 8  # of a process without its model: libraries, samples, and the copy that is saved
OF_GPUS = ("nodes", "gpus_per_node", "slurm_gpus_per_task", "slurm_num_gpus", "slurm_gres", "slurm_mem_per_gpu")
GIB = 2**30

Settings = Mapping[str, Any]


def uses_gpu(stage: Stage) -> bool:
    """Check whether a stage computes on a GPU where there is one."""
    return stage.on_device and stage.runtime.device not in ("cpu", "mps")


def spans_machines(stage: Stage) -> bool:
    """Check whether a stage runs on all machines of its job.

    An evaluation in one process only runs on the first, since it may take less time than starting torchrun.
    """
    return stage.in_processes and (stage.runtime.processes > 1 or not isinstance(stage, Evaluation))


def size_of(stage: Stage, cost: Cost | None) -> dict[str, Any]:
    """Choose parameters of submitit for the job of a stage.

    Args:
        stage: The stage.
        cost: Its estimated cost, if it is known.
    """
    processes = stage.runtime.processes if stage.in_processes else 1
    size: dict[str, Any] = {"nodes": 1, "timeout_min": _minutes(cost, processes)}
    if uses_gpu(stage):
        size["gpus_per_node"] = processes
    workers = stage.runtime.workers
    if isinstance(workers, int):
        size["cpus_per_task"] = processes * (workers + (stage.runtime.threads or THREADS))
    if cost and cost.memory:
        size["mem_gb"] = processes * (PROCESS_GIB + math.ceil(cost.memory.total / GIB))
    return size


def chosen_for(stage: Stage, parameters: Settings) -> dict[str, Any]:
    """Select the user's parameters for a stage.

    KEY counts less than cpu.KEY or gpu.KEY, and these less than STAGE.KEY. Without a scope, numbers of machines and
    GPUs only count for stages that use them.
    """
    scopes: list[dict[str, Any]] = [{}, {}, {}]
    order = ["", "gpu" if uses_gpu(stage) else "cpu", without_seed(stage.name)]
    unused = set() if uses_gpu(stage) else set(OF_GPUS)
    if not spans_machines(stage):
        unused |= {"nodes", "gpus_per_node"}
    for key, value in parameters.items():
        scope, _, name = key.rpartition(".")
        if scope in order and (scope or name not in unused):
            scopes[order.index(scope)][name] = value
    return {**scopes[0], **scopes[1], **scopes[2]}


def check_scopes(parameters: Settings, stages: Sequence[str]) -> None:
    """Check that each parameter with a dot begins with `cpu`, `gpu` or the name of a stage.

    Raises:
        UserError: If one does not.
    """
    known = ["cpu", "gpu", *dict.fromkeys(map(without_seed, stages))]
    for key in parameters:
        scope = key.rpartition(".")[0]
        if scope and scope not in known:
            raise UserError(f"--job {key}: expected cpu, gpu or a stage, got {scope}{did_you_mean(scope, known)}")


def _minutes(cost: Cost | None, processes: int) -> int:
    time = seconds(cost, processes, 1e12 * PEAK_TFLOPS, UTILISATION) if cost else None
    return UNKNOWN_MINUTES if time is None else START_MINUTES + math.ceil(SLACK * time / 60)
