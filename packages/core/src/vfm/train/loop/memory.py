"""Explain which memory a training run uses when it is out of memory, and which settings free some."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributed.tensor import DTensor

from vfm.base import UserError, error_lines
from vfm.interfaces import Context, Training
from vfm.train.loop.curves import memory_gib
from vfm.train.optim.ema import Ema
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.task import Task
from vfm.train.trained import trained_parameters

GIB = 2**30


class Held(Protocol):
    """The state that a training run keeps in memory between two steps."""

    optimizer: torch.optim.Optimizer
    done: int
    micro_batch_size: int
    ema: Ema | None

    @property
    def task(self) -> Task[Any]:
        """The trained task."""
        ...


@contextmanager
def memory_explained(held: Held, plan: Training, ctx: Context, world: DistributedWorld) -> Iterator[None]:
    """Turn an out-of-memory error within the context into a line with a remedy.

    The snapshot that the line names is written too.

    Args:
        held: Memory of weights, gradients and optimizer state.
        plan: Settings of the training.
        ctx: Context of the stage.
        world: This process.

    Raises:
        UserError: If the device has run out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        parts = memory_parts(held, world)
        file = ctx.work / f"out-of-memory-{world.rank}.json"
        _write(file, {"step": held.done + 1, "gib": parts, "message": str(error)}, world)
        shown = ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
        raise UserError(
            f"{ctx.stage}: out of memory on {world.device} at step {held.done + 1}, in GiB: {shown};"
            f" {remedy(plan, parts, held.micro_batch_size, world.size)}; snapshot: {file}"
        ) from error


def memory_parts(held: Held, world: DistributedWorld) -> dict[str, float]:
    """Measure the GiB of each kind of tensor in this process. `activations` are the rest of the peak."""
    state: list[Tensor] = []
    for values in held.optimizer.state.values():
        state += filter(torch.is_tensor, values.values())
    frozen: list[Tensor] = []
    for model in held.task.frozen():
        frozen += model.module.parameters()
    parts = {
        "weights": _gib([*held.task.parameters(), *held.task.buffers(), *frozen]),
        "gradients": _gib(trained_parameters(held.task)),
        "optimizer": _gib(state),
        "averages": _gib(held.ema.average.values() if held.ema else ()),
    }
    return parts | {"activations": max(0.0, memory_gib(world.device) - sum(parts.values()))}


def remedy(plan: Training, parts: dict[str, float], micro_batch_size: int, processes: int) -> str:
    """List settings that free memory without changing the result, with the GiB that each frees.

    Args:
        plan: Configuration of the training.
        parts: GiB by kind.
        micro_batch_size: Number of samples per forward pass.
        processes: Number of processes.
    """
    activations = parts["activations"]
    ways: list[tuple[float, str]] = []
    smaller = micro_batch_size // 2
    refusal = _refusal(plan, micro_batch_size=smaller) if smaller else ""
    if smaller and not refusal:
        # Activations are proportional to the micro-batch, everything else does not depend on it.
        freed = activations * (1 - smaller / micro_batch_size)
        ways.append((freed, f"--set {plan.name}.micro_batch_size={smaller} frees about {freed:.2f} GiB"))
    sharded = plan.runtime.model_copy(update={"parallel": "fsdp"})
    can_shard = processes > 1 and plan.can_shard and plan.runtime.parallel == "ddp"
    if can_shard and not _refusal(plan, runtime=sharded):
        # FSDP divides weights, gradients, averages and optimizer state by the number of processes, but no activations.
        freed = sum(size for name, size in parts.items() if name != "activations") * (1 - 1 / processes)
        ways.append((freed, f"--set {plan.name}.runtime.parallel=fsdp frees about {freed:.2f} GiB"))
    lines = [line for _, line in sorted(ways, reverse=True)]
    if not plan.grad_checkpointing and not _refusal(plan, grad_checkpointing=True):
        # A backward pass costs two forward passes, so recomputing the forward pass adds one to three.
        lines.append(
            f"--set {plan.name}.grad_checkpointing=true frees most of the {activations:.2f} GiB of activations"
            " for a third more computation"
        )
    advice = ", ".join(lines) or refusal or "a model or an image size that is smaller is needed"
    return f"{advice}; the same run then goes on from its last checkpoint"


def _refusal(plan: Training, **changes: object) -> str:
    """Explain why a training does not support a change of its settings. Empty if it does."""
    settings = {name: getattr(plan, name) for name in plan.model_fields_set}
    try:
        type(plan).model_validate({**settings, **changes})
    except ValidationError as error:
        return error_lines(error, type(plan))[0][1]
    return ""


def _gib(tensors: Iterable[Tensor]) -> float:
    total = 0
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        total += local.nbytes
    return total / GIB


def _write(file: Path, facts: dict[str, Any], world: DistributedWorld) -> None:
    if world.device.type == "cuda":
        facts["allocator"] = torch.cuda.memory_stats(world.device)
        # For pytorch.org/memory_viz.
        torch.cuda.memory._dump_snapshot(str(file.with_suffix(".pickle")))  # type: ignore[no-untyped-call]
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
