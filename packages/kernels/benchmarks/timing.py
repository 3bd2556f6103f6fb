"""Time, memory and kernels of a function, and the limits of the card."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]
CARD = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
HOST_CALLS = 10  # so few that the queue of launches does not fill, which would make the host wait


@dataclass(frozen=True)
class Timing:
    """Milliseconds (median, 20th and 80th percentile) and what belongs to them.

    Attributes:
        median: milliseconds of the device, or on a CPU of the call.
        low: 20th percentile.
        high: 80th percentile.
        peak_bytes: additional bytes at the peak.
        kernels: names of kernels in their order.
        host: milliseconds that a call costs the host on a GPU; they are not in the others if a graph was replayed.
        way: how it was timed: by replays of a CUDA graph, or why not.
        card: clocks, temperature and power during the measurement.
    """

    median: float
    low: float
    high: float
    peak_bytes: int
    kernels: tuple[str, ...]
    host: float | None = None
    way: str = "calls"
    card: str = ""


def measure(run: Run, device: torch.device, repeats: int = 100, replayed: bool = True) -> Timing:
    """Run a function `repeats` times, on a GPU with a flushed L2 cache before each run.

    Args:
        run: what is timed. What it needs must have been computed on the current stream.
        device: where it runs.
        repeats: number of timed runs.
        replayed: whether a GPU may replay a CUDA graph of the function, which leaves out the time of the host.
    """
    for _ in range(3):
        run()
    kernels = kernel_names(run, device)
    peak = peak_bytes(run, device)
    if device.type == "cuda":
        host = _on_host(run, device)
        replay, way = captured(run, device) if replayed else (run, "calls")
        times, card = _on_gpu(replay, device, repeats)
        about: tuple = (host, way, card)
    else:
        times, about = _on_cpu(run, repeats), ()
    low, *_, high = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), low, high, peak, kernels, *about)


def own_stream(device: torch.device) -> None:
    """Make a stream of its own the current one: the backward pass runs where the forward pass ran, and is captured."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))


def captured(run: Run, device: torch.device) -> tuple[Run, str]:
    """Return the replay of a CUDA graph of a function, or the function and why it has none."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device)):
            run()
        graph.replay()
        torch.cuda.synchronize(device)
    except Exception as error:  # a library may wait for the device or copy from the host
        return run, f"calls, no graph: {str(error).strip().partition(chr(10))[0]}"
    return graph.replay, "graph"


def _on_gpu(run: Run, device: torch.device, repeats: int) -> tuple[list[float], str]:
    cache = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    for start, end in events:
        cache.zero_()
        start.record()
        run()
        end.record()
    card = card_now()  # while the queue is being worked off
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events], card


def _on_host(run: Run, device: torch.device) -> float:
    times = []
    for _ in range(HOST_CALLS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    torch.cuda.synchronize(device)
    return statistics.median(times)


def _on_cpu(run: Run, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def card_now() -> str:
    """Return clocks (MHz), temperature (C) and power (W); empty without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={CARD}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


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
