"""Fixtures of all tests: seeds, the error rule and inputs between poisoned rows."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from error_rule import assert_agrees

Function = Callable[..., Any]


def pytest_configure(config: pytest.Config) -> None:
    # From opcheck of torch 2.15, which reads gradients of tensors that keep none.
    config.addinivalue_line("filterwarnings", "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def guarded() -> Function:
    """Return a function that puts a tensor between rows of NaN, so that reads beyond it show; strides are kept."""

    def guard(tensor: Tensor) -> Tensor:
        rows = tensor.contiguous().reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor.reshape(1, -1)
        poison = rows.new_full((8, rows.shape[1]), float("nan"))
        buffer = torch.cat([poison, rows, poison])
        return buffer[8:-8].view(tensor.shape)

    return guard


@pytest.fixture
def agrees() -> Function:
    """Return `error_rule.assert_agrees`."""
    return assert_agrees
