"""Choose whether a task runs in a single process, replicated (DDP), or sharded (FSDP2)."""

from __future__ import annotations

from vfm.base import UserError
from vfm.data.loading.batch import Inputs
from vfm.interfaces import TrainingRuntime
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.parallel.placement import Alone
from vfm.train.parallel.replicated import Replicated
from vfm.train.parallel.sharded import Sharded
from vfm.train.task import Task


def in_processes(task: Task[Inputs], runtime: TrainingRuntime, world: DistributedWorld) -> Alone[Inputs]:
    """Wrap a task for its processes as the runtime requires, and move it to its device.

    Args:
        task: The task.
        runtime: Settings of the training's processes.
        world: This process.

    Raises:
        UserError: If `cpu_offload` is set, but there is a single process.
    """
    # Not moved to the device here: the whole task may not fit there, so it is sent and cut block by block.
    if world.size > 1 and runtime.parallel == "fsdp":
        return Sharded(task, world, runtime)
    if runtime.cpu_offload:
        raise UserError("runtime.cpu_offload: expected several processes, got 1")
    placement = Alone if world.size == 1 else Replicated
    return placement(task.to(world.device), world)
