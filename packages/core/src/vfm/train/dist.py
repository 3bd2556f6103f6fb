"""Where a process stands among the processes of a training: device, rank, seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vfm.config import UserError
from vfm.interfaces import Training
from vfm.stage import Runtime

PATIENCE = timedelta(hours=2)  # how long processes wait for the first one, which may be judging the model (`evals`)


@dataclass(frozen=True)
class World:
    """This process among those of the training, as torchrun tells it."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, elementwise."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits for the other processes."""
        if self.size > 1:
            dist.barrier()


def micro_batch_size(plan: Training, world: World) -> int:
    """Samples of a forward pass of a process.

    Raises:
        UserError: the global batch cannot be shared out evenly.
    """
    if plan.global_batch_size % world.size:
        raise UserError(
            f"{plan.name}: global_batch_size {plan.global_batch_size} cannot be shared by {world.size} processes;"
            f" make it a multiple of {world.size}"
        )
    share = plan.global_batch_size // world.size
    return min(plan.micro_batch_size or share, share)


def is_main() -> bool:
    """Whether this process writes artifacts: the only one, or torchrun's rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def resolve_device(runtime: Runtime) -> torch.device:
    """The device of this process; the CPU threads that the runtime grants are set on the way.

    Raises:
        UserError: the device is not there.
    """
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    kind, _, index = runtime.device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device: no CUDA device is visible here; use cpu or auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("runtime.device: mps is not available here; use cpu or auto")
    if kind != "cuda":
        return torch.device(kind)
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise UserError(f"runtime.device: cuda:{number} is not here; this machine shows {torch.cuda.device_count()}")
    return torch.device("cuda", number)


@contextmanager
def distributed(runtime: Runtime) -> Iterator[World]:
    """The process group that torchrun's environment asks for: nccl on CUDA, else gloo; none for a single process.

    Nested uses share the outermost one's group.
    """
    device = resolve_device(runtime)
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    opened = size > 1 and not dist.is_initialized()
    if opened:
        backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, rank=rank, world_size=size, device_id=bound, timeout=PATIENCE)
    try:
        yield World(device, rank, size)
    finally:
        if opened:
            dist.destroy_process_group()


def seed_everything(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seeds torch's generators on all devices, from where in the training the draws happen.

    So dropout, drop path and noise do not depend on what ran before: a resumed run draws what an unbroken one draws.
    """
    state = np.random.SeedSequence([seed % 2**64, step, micro_batch, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms on the CPU, where they cost next to nothing; other devices are left as they are."""
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
