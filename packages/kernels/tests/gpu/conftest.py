"""Fixtures of the tests on a GPU; `TRITON_INTERPRET=1` runs them on the CPU, at small sizes, to test the tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    # Inductor recommends TF32, which these comparisons of fp32 must not use.
    config.addinivalue_line("filterwarnings", "ignore:TensorFloat32 tensor cores for float32:UserWarning")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the device of the kernels."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def kernels_on() -> Iterator[None]:
    from vfm_kernels import use_kernels

    with use_kernels("triton"):
        yield
