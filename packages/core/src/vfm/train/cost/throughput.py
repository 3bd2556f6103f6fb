"""The number of operations of a step, counted once, and the share of the device's peak that is reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from vfm.interfaces import TrainingRuntime
from vfm.train.cost.operations import Operations
from vfm.train.cost.peaks import peak_tflops


class Throughput:
    """The operations per second of this process.

    Args:
        device: The device.
        runtime: Runtime of the training.
        half: Whether matrix products are in bf16 or fp16.

    Attributes:
        flops: Operations of a step, including operations that are repeated to save memory. 0: not counted yet.
        repeated: Operations that are repeated.
    """

    def __init__(self, device: torch.device, runtime: TrainingRuntime, *, half: bool) -> None:
        self.device = device
        self.runtime = runtime
        self.half = half
        self.flops = self.repeated = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the operations within the context, once. Compiled layers would hide operations, so they run eagerly.

        A resumed run takes `flops` from its checkpoint, so that its first step is compiled as well.
        """
        if self.flops:
            yield
            return
        if self.runtime.compile:
            eager = torch.compiler.set_stance("force_eager")
        else:
            eager = nullcontext()
        with eager, Operations() as counter:
            yield
        self.flops = max(1, counter.flops)
        self.repeated = counter.repeated

    def reached(self, steps: int, seconds: float) -> dict[str, float]:
        """Compute the rate of the last steps and, if the peak of the device is known, its shares of the peak.

        The rate and `mfu_pct` are of the operations that the model needs, `hfu_pct` of all that the device computed
        (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
        """
        if not self.flops:
            return {}
        # Without repeated passes: mfu counts what the model needs, hfu what the device computes.
        rate = (self.flops - self.repeated) * steps / seconds / 1e12
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = ""
        peak = peak_tflops(name, half=self.half)
        values = {"train/tflops": round(rate, 4)}
        if peak:
            values["train/mfu_pct"] = round(100 * rate / peak, 2)
            values["train/hfu_pct"] = round(100 * self.flops * steps / seconds / 1e12 / peak, 2)
        return values

    def state(self, num_processes: int) -> dict[str, int]:
        """Build the state for a checkpoint, the operations of all processes."""
        return {"flops": self.flops * num_processes, "repeated_flops": self.repeated * num_processes}

    def restore(self, facts: Mapping[str, Any], num_processes: int) -> None:
        """Restore the state of a checkpoint. It may be from another number of processes."""
        self.flops = facts.get("flops", 0) // num_processes
        self.repeated = facts.get("repeated_flops", 0) // num_processes
