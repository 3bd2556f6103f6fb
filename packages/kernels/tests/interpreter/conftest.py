"""These tests run where Triton interprets its kernels; `../test_interpreter.py` starts a process for each file."""

import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned_outputs() -> Iterator[None]:
    """Buffers that torch hands out uninitialised are full of NaN, so what a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def kernels_on() -> Iterator[None]:
    from vfm_kernels import use_kernels

    with use_kernels("triton"):
        yield
