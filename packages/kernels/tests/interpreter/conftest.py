"""These tests run where Triton interprets its kernels; `../test_interpreter.py` starts a process for each file."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
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
def rounded_to_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 becomes bf16 by rounding to the nearest, as on a GPU; the interpreter cuts bits off, so errors double."""
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def round_or_convert(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source, target) == (float32, bfloat16):
            return torch.tensor(values).bfloat16().view(torch.int16).numpy()
        return convert(values, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", round_or_convert)


@pytest.fixture(autouse=True)
def kernels_on() -> Iterator[None]:
    from vfm_kernels import use_kernels

    with use_kernels("triton"):
        yield
