"""Fixtures of tests in Triton's interpreter; `../test_interpreter.py` starts a process for each file."""

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
    """Fill uninitialised buffers with NaN, so that values that a kernel does not write show."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def rounded_to_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round fp32 to the nearest bf16, as a GPU does; the interpreter truncates, which doubles the error."""
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
