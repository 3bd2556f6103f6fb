"""A task in the processes of a training: alone, replicated (DDP), or sharded (FSDP2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vfm.base import UserError
from vfm.data.loading.batch import Inputs
from vfm.interfaces import TrainingRuntime
from vfm.train.optim.state import as_whole, model_tensors
from vfm.train.parallel.dist import World
from vfm.train.task import Metrics, Task

Method = Callable[..., tuple[Tensor, Metrics]]


class Alone(Generic[Inputs]):
    """A task in the only process; the others are subclasses.

    Attributes:
        task: what is trained. Its parameters may be replaced by `wrap`.
    """

    def __init__(self, task: Task[Inputs], world: World) -> None:
        self.task, self.world = task.to(world.device), world

    def wrap(self) -> None:
        """Prepare for the first step, once the layers are those that will run."""

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Return what a method of the task returns; only here are the parameters whole."""
        return method(*args)

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Prepare a micro-batch's forward and backward pass."""

    def average_gradients(self) -> None:
        """Average the gradients that the backward passes have not averaged over the processes."""

    @contextmanager
    def whole(self) -> Iterator[Task[Inputs]]:
        """Yield a task with the present weights, all of them, and the buffers of the first process."""
        yield self.task

    def finish(self) -> Task[Inputs]:
        """Return the task that the caller of `fit` has, with the present weights."""
        return self.task


class Replicated(Alone[Inputs]):
    """Each process has the whole model; DDP averages gradients with the last micro-batch of a step."""

    def wrap(self) -> None:
        """Compare the weights of all processes, and prepare DDP's buckets."""
        device = self.world.device
        ids = [device.index] if device.type == "cuda" else None
        self.ddp = DistributedDataParallel(_Routed(self.task), device_ids=ids, gradient_as_bucket_view=True)

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Return what a method of the task returns."""
        found: tuple[Tensor, Metrics] = self.ddp(method, *args)
        return found

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Average gradients with the last micro-batch only, as DDP's `no_sync` does."""
        self.ddp.require_backward_grad_sync = is_last

    @contextmanager
    def whole(self) -> Iterator[Task[Inputs]]:
        """Yield the task; DDP, too, takes the first process' buffers before the next step."""
        self.world.copy_from_first(self.task.buffers())
        yield self.task


class Sharded(Alone[Inputs]):
    """Each process stores a part of every weight, gradient, average and optimizer state; blocks are gathered to run.

    A copy of the task is trained. The caller's task stays whole, in the host's memory, for evaluations and the export.
    Gradients are averaged after each micro-batch, so that no process ever stores all of them. Scalars, such as a
    temperature, are not cut: each process has them.

    Args:
        task: the task.
        world: this process.
        shard_degree: number of processes that share one copy of the model; None: all.

    Raises:
        UserError: the number of processes is not a multiple of it.

    Source: Zhao et al. 2023, PyTorch FSDP (arXiv:2304.11277), section 3.2.2 for hybrid sharding.
    """

    def __init__(self, task: Task[Inputs], world: World, shard_degree: int | None) -> None:
        self.original = task
        super().__init__(_copy_without_frozen(task), world)
        self.mesh = _mesh(world, shard_degree)

    def wrap(self) -> None:
        """Cut the parameters, which are new objects afterwards."""
        for block in blocks(self.task):
            fully_shard(block, mesh=self.mesh)
        self.uncut = [param for param in self.task.parameters() if param.numel() == 1]
        self.root = _Routed(self.task)
        fully_shard(self.root, mesh=self.mesh, ignored_params=set(self.uncut))

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Return what a method of the task returns."""
        found: tuple[Tensor, Metrics] = self.root(method, *args)
        return found

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Average over copies of the model with the last micro-batch only; within a copy, with each."""
        assert isinstance(self.root, FSDPModule)
        self.root.set_requires_all_reduce(is_last)

    def average_gradients(self) -> None:
        """Average the gradients of what is not cut."""
        for param in self.uncut:
            if param.grad is not None:
                param.grad = self.world.mean(param.grad)

    @contextmanager
    def whole(self) -> Iterator[Task[Inputs]]:
        """Gather the weights into the caller's task, on the device within the context."""
        self._gather()
        _move(self.original, self.world.device)
        self.world.copy_from_first(self.original.buffers())
        try:
            yield self.original
        finally:
            _move(self.original, torch.device("cpu"))

    def finish(self) -> Task[Inputs]:
        """Return the caller's task, with the weights gathered."""
        self._gather()
        return self.original.to(self.world.device)

    @torch.no_grad()
    def _gather(self) -> None:
        targets = self.original.state_dict(keep_vars=True)
        for name, value in model_tensors(self.task).items():
            targets[name].copy_(as_whole(value))


def in_processes(task: Task[Inputs], runtime: TrainingRuntime, world: World) -> Alone[Inputs]:
    """Return how a task runs in this process, as the runtime says, on its device."""
    if world.size == 1:
        return Alone(task, world)
    return Sharded(task, world, runtime.shard_degree) if runtime.parallel == "fsdp" else Replicated(task, world)


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return what is gathered as one: the elements of the outermost lists of equal modules, such as a model's blocks.

    A block that shares a weight with another module is left out.
    """
    uses = _uses(module)
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for container in module.modules():
        parts = list(container.children()) if isinstance(container, (nn.ModuleList, nn.Sequential)) else []
        if container in inside or len(parts) < 2 or len({type(part) for part in parts}) > 1:
            continue
        inside |= {each for part in parts for each in part.modules()}
        found += [part for part in parts if (own := _uses(part)) and all(uses[key] == own[key] for key in own)]
    return found


class _Routed(nn.Module):
    """Runs any method of a task inside `forward`, since DDP and FSDP see only what runs there."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.task = task

    def forward(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        return method(*args)


def _uses(module: nn.Module) -> Counter[int]:
    return Counter(id(param) for _, param in module.named_parameters(remove_duplicate=False))


def _copy_without_frozen(task: Task[Inputs]) -> Task[Inputs]:
    """Return a copy of a task that shares its frozen models."""
    shared: dict[int, Any] = {}
    for held in task.frozen():
        shared[id(held)] = held
        shared |= {id(module): module for module in held.module.modules()}
    return deepcopy(task, shared)


def _mesh(world: World, shard_degree: int | None) -> DeviceMesh:
    degree = shard_degree or world.size
    if world.size % degree:
        raise UserError(
            f"runtime.shard_degree: expected a divisor of the number of processes, {world.size}, got {degree}"
        )
    if degree == world.size:
        return init_device_mesh(world.device.type, (world.size,))
    sizes = (world.size // degree, degree)
    return init_device_mesh(world.device.type, sizes, mesh_dim_names=("replicate", "shard"))


def _move(task: Task[Any], device: torch.device) -> None:
    """Move a task's own weights and buffers; frozen models, which its sharded copy uses too, stay where they are."""
    for tensor in (*task.parameters(), *task.buffers()):
        tensor.data = tensor.data.to(device)
