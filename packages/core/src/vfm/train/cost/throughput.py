"""Operations of a step, counted once, and the share of the device's peak that they reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from vfm.interfaces import TrainingRuntime
from vfm.train.cost.operations import Operations

# Dense operations a second in 1e12: of bf16 or fp16, and of fp32 (as TF32 where the device has it). From NVIDIA's data
# sheets; the first name that is a part of the device's counts.
PEAKS = {
    "B200": (2250.0, 1125.0),
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.0, 417.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 62.5),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "RTX 4090": (165.0, 82.6),
    "RTX 3090": (71.0, 35.6),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
}


def peak_tflops(device_name: str, *, half: bool) -> float | None:
    """Return the peak of a device in 1e12 operations a second; None if it is not known.

    Args:
        device_name: as torch names it, "NVIDIA H100 80GB HBM3".
        half: of matrix products in bf16 or fp16, else in fp32.
    """
    for name, (in_half, in_full) in PEAKS.items():
        if name in device_name:
            return in_half if half else in_full
    return None


class Throughput:
    """The operations of this process in a second.

    Args:
        device: the device.
        runtime: of the training. With fsdp nothing is counted.
        half: whether matrix products are in bf16 or fp16.
    """

    def __init__(self, device: torch.device, runtime: TrainingRuntime, *, half: bool) -> None:
        self.device, self.runtime, self.half = device, runtime, half
        self.flops = 0  # of a step, also what is computed twice; 0: not counted

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the operations within the context, once; compiled layers, which hide them, run eagerly.

        A training that resumes takes `flops` from its checkpoint, so that its first step is compiled as well.
        """
        if self.flops or self.runtime.parallel == "fsdp":
            yield
            return
        eager = torch.compiler.set_stance("force_eager") if self.runtime.compile else nullcontext()
        with eager, Operations() as counter:
            yield
        self.flops = max(1, counter.flops)

    def reached(self, steps: int, seconds: float) -> dict[str, float]:
        """Return the rate of the last steps, and its share of the peak where that is known."""
        if not self.flops:
            return {}
        rate = self.flops * steps / seconds / 1e12
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        peak = peak_tflops(name, half=self.half)
        return {"train/tflops": round(rate, 4), **({"train/mfu_pct": round(100 * rate / peak, 2)} if peak else {})}
