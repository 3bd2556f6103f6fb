"""Measure what a call of an op costs the host: `python packages/kernels/benchmarks/overhead.py`.

Small models are bound by the host, which needs no GPU to be measured. A driver that loads and launches nothing stands
in for the GPU's, so that all else runs as it would there: dispatch, autograd, allocation, Triton's own look-up of the
compiled kernel. Torch's attention, which computes, gets a problem so small that its time is the host's too. The times
of the GPU's launches themselves (some 3 microseconds each, for both) are missing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import vfm_kernels as vk
from vfm_kernels.dispatch import dispatch

SIZES = {"D": 16, "N": 16}  # so small that torch's own kernels take no time


class NoDriver:
    """A driver of Triton for a Hopper GPU that is not there: kernels compile, and launches return at once."""

    def __init__(self) -> None:
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (0, 0, 0, 0, 1024), get_device_properties=lambda _: {"max_shared_mem": 232448}
        )
        self.launcher_cls = lambda *_: lambda *arguments: None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    """Parse the command line, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300, help="calls of a round")
    parser.add_argument("--rounds", type=int, default=15, help="rounds, of which the fastest counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    driver.set_active(NoDriver())
    dispatch._interpreted = lambda: True  # kernels are launched on tensors of the host
    print("| call | forward | and backward | times torch's |\n|---|--:|--:|--:|")
    base = None
    ways = cases()
    best = {name: (float("inf"), float("inf")) for name in ways}
    for _ in range(options.rounds):  # in turns, because other processes take the machine at times
        for name, way in ways.items():
            best[name] = tuple(map(min, best[name], measured(way, options.calls)))
    for name, (forward, both) in best.items():
        base = base or both
        print(f"| {name} | {forward:.0f} | {both:.0f} | {both / base:.2f} |")


def cases() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    """Return functions and their inputs by name; the first is what the others are compared with."""
    qkv = torch.randn(1, SIZES["N"], 3, 1, SIZES["D"], dtype=torch.bfloat16, requires_grad=True)
    heads = [torch.randn(1, SIZES["N"], 1, SIZES["D"], dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def sdpa(packed: Tensor) -> Tensor:
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return {
        "torch's `scaled_dot_product_attention` of packed heads": (sdpa, [qkv]),
        "`attention_packed`, ours for few tokens": (lambda x: vk.attention_packed(x, backend="triton_short"), [qkv]),
        "`attention_packed`, ours for many tokens": (lambda x: vk.attention_packed(x, backend="triton_stream"), [qkv]),
        "`attention` of three tensors": (lambda *x: vk.attention(*x, backend="triton_stream"), heads),
    }


def measured(way: tuple[Callable[..., Any], list[Tensor]], calls: int) -> tuple[float, float]:
    """Return the median microseconds of the processor for a call with a graph, and for it and its backward."""
    function, inputs = way
    grad = torch.ones_like(function(*inputs))
    forward, both = [], []
    for _ in range(calls):
        started = time.perf_counter_ns()
        out = function(*inputs)
        between = time.perf_counter_ns()
        torch.autograd.grad(out, inputs, grad)
        forward.append(between - started)
        both.append(time.perf_counter_ns() - started)
    return statistics.median(forward) / 1e3, statistics.median(both) / 1e3


if __name__ == "__main__":
    main()
