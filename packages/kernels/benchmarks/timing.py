"""Time, memory and kernels of a function, and the limits of the card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Milliseconds (median, 20th and 80th percentile), additional bytes at the peak, and kernels in their order."""

    median: float
    low: float
    high: float
    peak_bytes: int
    kernels: tuple[str, ...]


def measure(run: Run, device: torch.device, repeats: int = 100) -> Timing:
    """Run a function `repeats` times, on a GPU with a flushed L2 cache before each run."""
    for _ in range(3):
        run()
    kernels = kernel_names(run, device)
    peak = peak_bytes(run, device)
    times = _on_gpu(run, device, repeats) if device.type == "cuda" else _on_cpu(run, repeats)
    low, *_, high = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), low, high, peak, kernels)


def _on_gpu(run: Run, device: torch.device, repeats: int) -> list[float]:
    cache = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    for start, end in events:
        cache.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def _on_cpu(run: Run, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def kernel_names(run: Run, device: torch.device) -> tuple[str, ...]:
    """Return the names of what ran: kernels on a GPU, torch's outermost ops on a CPU; each name once."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as profiled:  # without it, a warning
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    device_type = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    events = [event for event in profiled.events() if event.device_type == device_type and event.cpu_parent is None]
    return tuple(dict.fromkeys(event.name for event in events))


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the additional memory at the peak; 0 on a CPU, where torch does not count it."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@dataclass(frozen=True)
class Roof:
    """Rates of a copy (bytes read and written) and a bf16 matrix product (operations) per second."""

    bytes_per_second: float
    flops_per_second: float

    def milliseconds(self, num_bytes: float, flops: float) -> float:
        """Return the least time for an amount of work."""
        return max(num_bytes / self.bytes_per_second, flops / self.flops_per_second) * 1e3


def measured_roof(device: torch.device, size: int) -> Roof:
    """Measure a copy of size x size numbers and the product of two such matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    copied, multiplied = measure(lambda: a.copy_(b), device, 30), measure(lambda: a @ b, device, 30)
    return Roof(4 * size**2 / copied.median * 1e3, 2 * size**3 / multiplied.median * 1e3)
