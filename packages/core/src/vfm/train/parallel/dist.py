"""The processes of a training run: devices, ranks, seeds."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from vfm.base import UserError
from vfm.interfaces import Runtime, Training, TrainingRuntime
from vfm.train.parallel.flight_recorder import record_collectives

_uses = count()
_exchanges: list[Store] = []
CLOSING = 20.0  # seconds to close the process group after an error
# The processes that wait would fail after gloo's 30 minutes or NCCL's 10.
TIMEOUT = timedelta(hours=2)  # the others wait for rank 0 while it scores an evaluation


@dataclass(frozen=True)
class DistributedWorld:
    """This process and its place among all processes of a training run, from torchrun's environment."""

    device: torch.device
    rank: int = 0
    size: int = 1
    store: Store | None = None  # store of the process group, on a separate connection, with separate keys

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Compute the elementwise mean over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def gather(self, value: Any) -> list[Any]:
        """Gather the values of all processes, in the order of their ranks."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def gather_to_first(self, value: Any) -> list[Any]:
        """Gather the values of all processes in rank 0, in the order of their ranks. The other processes get none."""
        values: list[Any] = [value] * self.size if self.is_main else []
        if self.size > 1:
            dist.gather_object(value, values if self.is_main else None)
        return values

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by the values in rank 0, bit for bit."""
        for tensor in tensors if self.size > 1 else ():
            value = tensor.detach().contiguous()
            dist.broadcast(value, src=0)
            tensor.detach().copy_(value)

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.size > 1:
            dist.barrier()


def micro_batch_size(plan: Training, world: DistributedWorld) -> int:
    """Compute the number of samples per forward pass of a process.

    Raises:
        UserError: If the global batch is not divisible by the number of processes.
    """
    if plan.global_batch_size % world.size:
        raise UserError(
            f"{plan.name}: global_batch_size must be a multiple of the {world.size} processes,"
            f" got {plan.global_batch_size}"
        )
    share = plan.global_batch_size // world.size
    return min(plan.micro_batch_size or share, share)


def is_main() -> bool:
    """Check whether this process writes artifacts, because it is the only one or torchrun's rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def resolve_device(runtime: Runtime) -> torch.device:
    """Choose the device of this process.

    Raises:
        UserError: If the device does not exist.
    """
    kind, _, index = runtime.device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device: no CUDA device is visible; use cpu or auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("runtime.device: mps is not available; use cpu or auto")
    if kind != "cuda":
        return torch.device(kind)
    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise UserError(
            f"runtime.device: cuda:{number} does not exist; this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda", number)


def prepare_device(runtime: Runtime) -> torch.device:
    """Set the number of torch's CPU threads from the runtime until the process ends, and choose its device."""
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    return resolve_device(runtime)


def exchanged(text: str) -> list[str]:
    """Exchange a text with torchrun's other processes, before there is a process group.

    Returns:
        The texts of all processes, in the order of their ranks.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    _exchanges.append(store)  # others may still read what rank 0 serves
    texts = PrefixStore(f"texts-{len(_exchanges)}", store)
    texts.set(str(rank), text)
    return [texts.get(str(other)).decode() for other in range(size)]


@contextmanager
def distributed(runtime: Runtime) -> Iterator[DistributedWorld]:
    """Open the process group from torchrun's environment.

    The backend is nccl on CUDA, else gloo. A single process has no group. Nested uses share the outermost group. Within
    the context, the runtime sets the number of torch's CPU threads.
    """
    threads = torch.get_num_threads()
    device = prepare_device(runtime)
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    opened = size > 1 and not dist.is_initialized()
    if opened:
        bound = device if device.type == "cuda" else None
        if isinstance(runtime, TrainingRuntime):
            record_collectives(runtime.flight_recorder)
        dist.init_process_group(_backend(runtime, device), rank=rank, world_size=size, device_id=bound, timeout=TIMEOUT)
    # Each use has separate keys, since torchrun's store outlives the process group.
    store: Store | None = None
    if size > 1:
        connection = _get_default_store().clone()  # type: ignore[attr-defined]
        store = PrefixStore(f"use-{next(_uses)}", connection)
    failed = True
    try:
        yield DistributedWorld(device, rank, size, store)
        failed = False
    finally:
        if opened:
            # DDP's reducer holds the group too. If it were the last to let go, torch 2.10 would wait, with the
            # interpreter's lock, for a thread of gloo that may wait for this lock: the process hung for ever.
            gc.collect()
            if failed:
                _close_in_time()
            else:
                dist.destroy_process_group()
        torch.set_num_threads(threads)


def _backend(runtime: Runtime, device: torch.device) -> str:
    """Choose the library that connects the processes."""
    if device.type != "cuda":
        return "gloo"
    # Weights that `cpu_offload` stores in host memory are compared and gathered there.
    is_offloaded = isinstance(runtime, TrainingRuntime) and runtime.cpu_offload
    return "cpu:gloo,cuda:nccl" if is_offloaded else "nccl"


def _close_in_time() -> None:
    """Destroy the process group after an error, for some seconds at most, so that the error is reported.

    NCCL waits for collectives that other processes may never join.
    """

    def close() -> None:
        with suppress(RuntimeError):  # the first error is the one to report
            dist.destroy_process_group()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(CLOSING)


def seed_everything(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seed torch's generators on all devices by the position in the training.

    Dropout, drop path and noise then do not depend on earlier computations, and a resumed run draws the same values as
    an uninterrupted one.

    Args:
        seed: Seed of the training.
        step: Number of the step.
        micro_batch: Number of the micro-batch in the step.
        rank: Number of this process.
    """
    # A seed sequence mixes the numbers, so that neighbouring steps and ranks have unrelated seeds.
    state = np.random.SeedSequence([seed % 2**64, step, micro_batch, rank]).generate_state(1, np.uint64)
    if torch.accelerator.is_available():
        torch.manual_seed(int(state[0]))
    else:  # `torch.manual_seed` would format the stack for each kind of device that is missing
        torch.default_generator.manual_seed(int(state[0]))


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """Multiply fp32 matrices in TF32 on CUDA devices within the context.

    Operations that stay in fp32 under bf16, such as losses, then run on tensor cores. Evaluations of fp32 models keep
    full precision.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms on the CPU, where they cost almost nothing; other devices are unchanged."""
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
