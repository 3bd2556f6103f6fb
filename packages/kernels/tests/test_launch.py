"""Launches that keep the compiled kernel: what reaches the driver, by one that records instead of launching."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver

from vfm_kernels.triton import launch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@triton.jit
def add_kernel(x, y, out, count, factor, HAS_Y: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    value = tl.load(x + places, mask=places < count) * factor
    if HAS_Y:
        value += tl.load(y + places, mask=places < count)
    tl.store(out + places, value, mask=places < count)


@pytest.fixture
def launched(monkeypatch):
    """Return the list of what the driver was asked to launch."""
    if knobs.runtime.interpret:
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    overhead, launches = importlib.import_module("overhead"), []
    fake = overhead.NoDriver()
    fake.launcher_cls = lambda source, metadata: lambda *args: launches.append((metadata.hash, *args[:4], *args[9:]))
    monkeypatch.setattr(launch, "_COMPILED", {})
    monkeypatch.setattr(driver, "_active", fake)
    yield launches
    add_kernel.device_caches.clear()
    del sys.modules["overhead"]


def test_a_kept_kernel_gets_what_triton_would_pass(launched):
    x, y, out = (torch.ones(20) for _ in range(3))
    arguments = (x, y, out, 16, 0.5)
    for _ in range(3):
        launch.launch(add_kernel, (2, 3), x.device, *arguments, HAS_Y=True, num_warps=2, BLOCK=16)
    first, *kept = launched
    assert len(launch._COMPILED) == 1
    for again in kept:
        assert again[:5] == first[:5]
        assert all(argument is value for argument, value in zip(again[5:], first[5:], strict=True))
    assert first[1:5] == (2, 3, 1, 0)


def test_other_numbers_dtypes_constants_and_addresses_are_other_kernels(launched):
    x, y, out = (torch.ones(20) for _ in range(3))
    of_y = {"HAS_Y": True, "BLOCK": 16}
    for arguments, constants in (
        ((x, y, out, 16, 0.5), of_y),
        ((x, y, out, 15, 0.5), of_y),  # not divisible by 16
        ((x.half(), y, out, 16, 0.5), of_y),
        ((x, None, out, 16, 0.5), {"HAS_Y": False, "BLOCK": 16}),
        ((x[1:], y, out, 16, 0.5), of_y),  # not aligned
    ):
        for _ in range(2):
            launch.launch(add_kernel, (1,), x.device, *arguments, **constants)
    hashes = [each[0] for each in launched]
    assert hashes[::2] == hashes[1::2]
    assert len(set(hashes)) == 5
    assert len(launch._COMPILED) == 4  # that of another address is Triton's to find
