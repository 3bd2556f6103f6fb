"""A task of which each process stores a part (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from vfm.base import UserError
from vfm.data.loading.batch import Inputs
from vfm.interfaces import TrainingRuntime
from vfm.models.stored_weights import StoredWeight, stored_weight, unchanged
from vfm.train.parallel.blocks import blocks
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.parallel.gathering import gathered
from vfm.train.parallel.hollow import hollow, hollow_copy, without_meta
from vfm.train.parallel.placement import Alone, Method, Routed
from vfm.train.task import Metrics, Task


class Sharded(Alone[Inputs]):
    """A task of which each process stores a part.

    The parts are of weights, gradients, averages and optimizer state. A copy of the task is trained. Its weights come
    from rank 0, block by block, so the other processes need no weights, and no process has the whole model. The weights
    of the caller's task are moved. It has weights again within `whole`, and in rank 0 at the end.

    Blocks are gathered when they run, in the type of autocast. Gradients are averaged in fp32 after each micro-batch,
    so that no process ever stores all of them. Scalars, such as a temperature, are in every process.

    Args:
        task: The task, in rank 0 with its weights. In other processes they may be on the meta device.
        world: This process.
        runtime: The settings of FSDP.

    Raises:
        UserError: If the number of processes is not a multiple of `shard_degree`.
        ValueError: If a frozen model has no weights.

    Source: Zhao et al. 2023, PyTorch FSDP (arXiv:2304.11277), section 3.2.2 for hybrid sharding.
    """

    def __init__(self, task: Task[Inputs], world: DistributedWorld, runtime: TrainingRuntime) -> None:
        without_meta(task)
        self.original = task
        self.runtime = runtime
        self.gathers = runtime.gather_for_evaluation
        for held in task.frozen():
            if any(param.is_meta for param in held.module.parameters()):
                raise ValueError(f"{type(held.module).__name__}: build frozen models outside weights_from_first")
            held.module.to(world.device)
        self.task, self.sources = hollow_copy(task, world.device)
        self.world = world
        self.mesh = _mesh(world, runtime.shard_degree)

    def wrap(self, half: torch.dtype | None) -> None:
        """Receive the weights from rank 0 and shard them. New objects replace the parameters."""
        # Autocast would copy gathered fp32 matrices and keep the copies until the backward pass, as much memory as the
        # whole model. Inputs are not cast, so that sums of residuals stay in fp32, as with DDP. What is outside the
        # blocks, such as embeddings, is gathered in fp32 for the same reason.
        self.half = half
        self.stored = self._stored()
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        offload = offload_policy(self.runtime, self.world.device)
        units = blocks(self.task)
        for block in units:
            self._receive(block)
            fully_shard(
                block,
                mesh=self.mesh,
                mp_policy=policy,
                offload_policy=offload,
                reshard_after_forward=self.runtime.reshard,
            )
        self.root = Routed(self.task)
        self._receive(self.root)
        # FSDP refuses scalars, and of a vector of one number all processes but the first would have an empty part.
        self.uncut = [param for param in self.task.parameters() if param.numel() == 1]
        fully_shard(self.root, mesh=self.mesh, ignored_params=set(self.uncut), offload_policy=offload)
        if self.runtime.prefetch_blocks:
            prefetch_blocks(self.task, self.runtime.prefetch_blocks)
        self.world.copy_from_first(self.task.buffers())

    def run(self, method: Method, *args: Any) -> tuple[Tensor, Metrics]:
        """Run a method of the task."""
        output: tuple[Tensor, Metrics] = self.root(method, *args)
        return output

    def begin_micro_batch(self, *, is_last: bool) -> None:
        """Average over copies of the model in the last micro-batch, and within a copy in each micro-batch."""
        assert isinstance(self.root, FSDPModule)
        self.root.set_requires_all_reduce(is_last)

    def average_gradients(self) -> None:
        """Average the gradients of parameters that are not sharded."""
        for param in self.uncut:
            if param.grad is not None:
                param.grad = self.world.mean(param.grad)

    @contextmanager
    def whole(self) -> Iterator[Task[Inputs]]:
        """Gather the weights into the caller's task, on the device within the context, unless they would not fit."""
        if not self.gathers:
            with self._block_by_block():
                yield self.task
            return
        self._fill(self.world.device, is_filled=True)
        try:
            yield self.original
        finally:
            for param in self.original.parameters():
                param.data = hollow(param, torch.device("cpu"))

    @contextmanager
    def _block_by_block(self) -> Iterator[None]:
        """Allow any method of the task to run within the context, with blocks gathered in the training's precision."""
        device = self.world.device.type
        with torch.no_grad(), torch.autocast(device, self.half or torch.bfloat16, enabled=self.half is not None):
            self.root(lambda: None)  # gathers what is outside the blocks, and prepares their hooks
            try:
                yield
            finally:
                assert isinstance(self.root, FSDPModule)
                self.root.reshard()

    def finish(self) -> Task[Inputs]:
        """Gather the weights into the caller's task in rank 0, and return it. The other processes have no weights.

        The task is on the device if it fits there, otherwise on the CPU.
        """
        self.task.zero_grad(set_to_none=True)  # their memory is needed for the whole weights
        self._fill(torch.device("cpu"), is_filled=self.world.is_main)
        if not self.world.is_main:
            return self.original
        try:
            return self.original.to(self.world.device)
        except torch.OutOfMemoryError:
            return self.original.to("cpu")

    @torch.no_grad()
    def _receive(self, module: nn.Module) -> None:
        """Fill a module's hollow weights with the values of rank 0, where they are moved from the caller's task."""
        for param in module.parameters():
            source = self.sources.pop(param, None)
            if source is None:  # it is cut already
                continue
            stored = self.stored.get(source)
            if self.world.is_main and not stored:
                param.data = source.data.to(self.world.device).contiguous()
            else:
                param.data = torch.empty(param.shape, dtype=param.dtype, device=self.world.device)
            if stored:
                self._read_part(param, stored)
            else:
                dist.broadcast(param.data, src=0)
            source.data = hollow(source, torch.device("cpu"))

    def _stored(self) -> dict[nn.Parameter, StoredWeight]:
        """Find the weights that all processes have from a file, and that rank 0 has not changed."""
        sources = list(self.sources.values())
        known = [stored_weight(source) is not None for source in sources]
        if self.world.is_main:
            known = unchanged(sources)
        agreed = torch.tensor(known, dtype=torch.int32, device=self.world.device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        found = {}
        for source, is_known in zip(sources, agreed.tolist(), strict=True):
            stored = stored_weight(source)
            if is_known and stored:
                found[source] = stored
        return found

    def _read_part(self, param: nn.Parameter, stored: StoredWeight) -> None:
        """Read the rows that FSDP leaves to this process. The other rows of the weight have no values."""
        last = self.mesh.ndim - 1  # of several dimensions, the last one cuts
        rows = -(-len(param) // self.mesh.size(last))
        start = min(len(param), rows * self.mesh.get_local_rank(last))
        stop = min(len(param), start + rows)
        if start < stop:
            param.data[start:stop] = stored.rows(start, stop)

    @torch.no_grad()
    def _fill(self, device: torch.device, *, is_filled: bool) -> None:
        """Gather the weights, and the buffers of rank 0, and put them into the caller's task if it is to be filled."""
        targets = {**dict(self.original.named_parameters()), **dict(self.original.named_buffers())}
        weights = ((name, param.detach()) for name, param in self.task.named_parameters())
        for name, value in gathered(weights):
            if is_filled:
                targets[name].data = value.to(device)
        for name, buffer in self.task.named_buffers():
            value = buffer.clone()
            self.world.copy_from_first([value])
            if is_filled:
                targets[name].data = value.to(device)


def offload_policy(runtime: TrainingRuntime, device: torch.device) -> OffloadPolicy:
    """Choose where the parts of the weights are stored between their uses.

    They are on the device, or in host memory.
    """
    return CPUOffloadPolicy(pin_memory=device.type == "cuda") if runtime.cpu_offload else OffloadPolicy()


def prefetch_blocks(task: nn.Module, number: int) -> None:
    """Gather the next blocks while a sharded block runs, and in the backward pass the previous ones.

    Only blocks of the same list follow each other, since a model may have several towers.
    """
    lists: dict[str, list[FSDPModule]] = {}
    for name, module in task.named_modules():
        if isinstance(module, FSDPModule):
            lists.setdefault(name.rpartition(".")[0], []).append(module)
    for modules in lists.values():
        for index, module in enumerate(modules):
            module.set_modules_to_forward_prefetch(modules[index + 1 : index + 1 + number])
            module.set_modules_to_backward_prefetch(modules[max(0, index - number) : index][::-1])


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
