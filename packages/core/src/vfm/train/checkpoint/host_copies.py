"""Copies of a checkpoint's tensors in host memory, and the time that training waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vfm.train.checkpoint.shards import Parts


def copy_to_host(tensors: Parts, *, copy: bool) -> Parts:
    """Copy tensors to the host. Without `copy`, tensors that are already on the host are not copied."""
    copies: Parts = {}
    for part, values in tensors.items():
        copies[part] = {name: value.detach().to("cpu", copy=copy) for name, value in values.items()}
    return copies


class HostBuffers:
    """Buffers for the tensors of a checkpoint. They are reused for the next checkpoint.

    Args:
        pinned: Whether a device can write into the buffers while the host continues.
    """

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self.buffers: dict[tuple[str, str], Tensor] = {}

    def copy(self, tensors: Parts) -> Parts:
        """Copy tensors into the buffers. Copies from a device are only queued. The best weights never change."""
        copies: Parts = {}
        for part, values in tensors.items():
            copies[part] = values if part == "best" else {name: self._copy(part, name, values[name]) for name in values}
        return copies

    def _copy(self, part: str, name: str, value: Tensor) -> Tensor:
        local = _local(value.detach())
        buffer = self.buffers.get((part, name))
        if buffer is None or (_local(buffer).shape, buffer.dtype) != (local.shape, local.dtype):
            memory = torch.empty(local.shape, dtype=local.dtype, pin_memory=self.pinned)
            buffer = memory
            if isinstance(value, DTensor):
                buffer = torch.empty_like(value.detach(), device="cpu")
                buffer._local_tensor = memory  # type: ignore[attr-defined]  # as FSDP places its own memory
            self.buffers[part, name] = buffer
        _local(buffer).copy_(local, non_blocking=True)
        return buffer


class DeviceCopies:
    """Copies from a CUDA device, on a separate stream, while the device computes the next gradients."""

    def __init__(self, device: torch.device) -> None:
        self.buffers = HostBuffers(pinned=True)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.copied: torch.cuda.Event | None = None

    def start(self, tensors: Parts) -> Parts:
        """Queue the copies. The tensors must exist until `wait` returns."""
        # The copies must see the weights after the step that is still queued.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            copies = self.buffers.copy(tensors)
        self.copied = self.stream.record_event()  # type: ignore[no-untyped-call]
        return copies

    def hold_device(self) -> None:
        """Make the device wait until the tensors have been copied before it changes them. The host continues."""
        if self.copied:
            torch.cuda.current_stream().wait_event(self.copied)

    def wait(self) -> None:
        """Wait until the copies are complete."""
        if self.copied:
            self.copied.synchronize()


class Pauses:
    """The seconds that training has waited for checkpoints."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time within the context."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def take(self) -> float:
        """Return the seconds since the last call."""
        seconds = self.seconds
        self.seconds = 0.0
        return seconds


def _local(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to_local()
