"""A task in the processes of a training run: alone, replicated (DDP), or sharded (FSDP2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vfm.base import UserError
from vfm.data.loading.batch import Inputs
from vfm.interfaces import TrainingRuntime
from vfm.train.optim.state import as_whole, model_tensors
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.parallel.gradient_mean import mean_in_fp32
from vfm.train.task import Metrics, Task

Method = Callable[..., tuple[Tensor, Metrics]]


class Alone(Generic[Inputs]):
    """A task in a single process, and the base class for several processes.

    Attributes:
        task: the trained task. `wrap` may replace its parameters.
    """

    def __init__(self, task: Task[Inputs], world: DistributedWorld) -> None:
        self.task, self.world = task.to(world.device), world

    def wrap(self, half: torch.dtype | None) -> None:
        """Prepare for the first step, after the layers have been prepared.

        Args:
            half: the type in which sharded weights are gathered, None for fp32.
        """

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Run a method of the task. With FSDP, parameters are only whole within it."""
        return method(*args)

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Prepare the forward and backward pass of a micro-batch."""

    def average_gradients(self) -> None:
        """Average the gradients that the backward passes have not averaged over the processes."""

    @contextmanager
    def whole(self) -> Iterator[Task[Inputs]]:
        """Yield a task with all current weights, and with the buffers of rank 0."""
        yield self.task

    def finish(self) -> Task[Inputs]:
        """Give the caller's task the current weights, and return it."""
        return self.task


class Replicated(Alone[Inputs]):
    """A task whose whole model is in each process. DDP averages gradients with the last micro-batch of a step."""

    def wrap(self, half: torch.dtype | None) -> None:
        """Compare the weights of all processes, and prepare DDP's buckets."""
        device = self.world.device
        ids = [device.index] if device.type == "cuda" else None
        self.ddp = DistributedDataParallel(_Routed(self.task), device_ids=ids, gradient_as_bucket_view=True)
        if any(param.dtype == torch.bfloat16 for param in self.task.parameters()):
            self.ddp.register_comm_hook(self.world.size, mean_in_fp32)

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Run a method of the task."""
        output: tuple[Tensor, Metrics] = self.ddp(method, *args)
        return output

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Average gradients with the last micro-batch only, as DDP's `no_sync` does."""
        self.ddp.require_backward_grad_sync = is_last

    @contextmanager
    def whole(self) -> Iterator[Task[Inputs]]:
        """Yield the task with the buffers of rank 0, which DDP also uses from the next step on."""
        self.world.copy_from_first(self.task.buffers())
        yield self.task


class Sharded(Alone[Inputs]):
    """A task of which each process stores a part: weights, gradients, averages and optimizer state.

    Blocks are gathered when they run, in the type of autocast. A copy of the task is trained. The caller's task stays
    whole, in the host's memory, for evaluations and the export. Gradients are averaged in fp32 after each micro-batch,
    so that no process ever stores all of them. Scalars, such as a temperature, are not cut, so each process has them.

    Args:
        task: the task.
        world: this process.
        shard_degree: number of processes that share one copy of the model, None for all.
        reshard: whether a block's gathered weights are freed after its forward pass.

    Raises:
        UserError: If the number of processes is not a multiple of `shard_degree`.

    Source: Zhao et al. 2023, PyTorch FSDP (arXiv:2304.11277), section 3.2.2 for hybrid sharding.
    """

    def __init__(
        self, task: Task[Inputs], world: DistributedWorld, shard_degree: int | None, *, reshard: bool = True
    ) -> None:
        self.original, self.reshard = task, reshard
        super().__init__(_copy_without_frozen(task), world)
        self.mesh = _mesh(world, shard_degree)

    def wrap(self, half: torch.dtype | None) -> None:
        """Cut the parameters, which replaces them by new objects."""
        # Autocast would copy gathered fp32 matrices and keep the copies until the backward pass, as much memory as the
        # whole model. Inputs are not cast, so that sums of residuals stay in fp32, as with DDP. What is outside the
        # blocks, such as embeddings, is gathered in fp32 for the same reason.
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks(self.task):
            fully_shard(block, mesh=self.mesh, mp_policy=policy, reshard_after_forward=self.reshard)
        self.uncut = [param for param in self.task.parameters() if param.numel() == 1]
        self.root = _Routed(self.task)
        fully_shard(self.root, mesh=self.mesh, ignored_params=set(self.uncut))

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Run a method of the task."""
        output: tuple[Tensor, Metrics] = self.root(method, *args)
        return output

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Average over copies of the model with the last micro-batch only, but within a copy with each."""
        assert isinstance(self.root, FSDPModule)
        self.root.set_requires_all_reduce(is_last)

    def average_gradients(self) -> None:
        """Average the gradients of parameters that are not cut."""
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


def in_processes(task: Task[Inputs], runtime: TrainingRuntime, world: DistributedWorld) -> Alone[Inputs]:
    """Choose how a task runs in this process, by the runtime, and move it to its device."""
    if world.size == 1:
        return Alone(task, world)
    if runtime.parallel == "fsdp":
        return Sharded(task, world, runtime.shard_degree, reshard=runtime.reshard)
    return Replicated(task, world)


def blocks(module: nn.Module) -> list[nn.Module]:
    """Find the modules that are gathered as units: elements of the outermost lists of equal modules, such as blocks.

    A block that shares a weight with another module is left out.
    """
    uses = _uses(module)
    units: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for container in module.modules():
        parts = list(container.children()) if isinstance(container, (nn.ModuleList, nn.Sequential)) else []
        if container in inside or len(parts) < 2 or len({type(part) for part in parts}) > 1:
            continue
        for part in parts:
            inside.update(part.modules())
            uses_in_part = _uses(part)
            is_unshared = all(uses[key] == count for key, count in uses_in_part.items())
            if uses_in_part and is_unshared:
                units.append(part)
    return units


class _Routed(nn.Module):
    """Runs any method of a task inside `forward`, since the hooks of DDP and FSDP only run there."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.task = task

    def forward(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        return method(*args)


def _uses(module: nn.Module) -> Counter[int]:
    return Counter(id(param) for _, param in module.named_parameters(remove_duplicate=False))


def _copy_without_frozen(task: Task[Inputs]) -> Task[Inputs]:
    """Copy a task, but share its frozen models."""
    shared: dict[int, Any] = {}
    for held in task.frozen():
        shared[id(held)] = held
        shared |= {id(module): module for module in held.module.modules()}
    return deepcopy(task, shared)


def _mesh(world: DistributedWorld, shard_degree: int | None) -> DeviceMesh:
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
    """Move the weights and buffers of a task, but not its frozen models, which its sharded copy uses too."""
    for tensor in (*task.parameters(), *task.buffers()):
        tensor.data = tensor.data.to(device)
