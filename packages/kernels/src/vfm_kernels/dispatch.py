"""Which implementation an op takes: the plain one, which is its specification, or the Triton kernel.

`auto` takes the kernel on GPUs it was compiled for, and the plain form elsewhere: on a CPU nothing changes and nothing
is spent. `reference` never takes a kernel. `triton` takes it or raises, with every reason why it cannot run.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

Kernels = Literal["auto", "reference", "triton"]

OLDEST_CAPABILITY = (8, 0)  # Ampere: the oldest architecture that the kernels are compiled for in the tests

_choice: Kernels = "auto"


@contextmanager
def use_kernels(choice: Kernels) -> Iterator[None]:
    """Makes all ops of this process take `choice` within the block.

    Raises:
        ValueError: no such choice.
    """
    global _choice
    if choice not in get_args(Kernels):
        raise ValueError(f"kernels is {choice!r}; it must be one of {', '.join(get_args(Kernels))}")
    before, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = before


def choice_in_force() -> Kernels:
    """What `use_kernels` was given last, for ops with more than two implementations."""
    return _choice


def fused(*tensors: Tensor) -> bool:
    """Whether an op of these tensors takes its kernel, by the choice in force.

    Raises:
        ValueError: the choice is `triton`, and it cannot run; says why.
    """
    if _choice == "reference" or (_choice == "auto" and tensors[0].device.type != "cuda"):
        return False
    reasons = not_supported_reasons(*tensors)
    if reasons and _choice == "triton":
        raise ValueError(f"kernels is 'triton', which cannot run here: {'; '.join(reasons)}")
    return not reasons


def not_supported_reasons(*tensors: Tensor) -> list[str]:
    """Why the kernels cannot take these tensors; empty if they can."""
    reasons = list(_reasons_of_device(tensors[0].device))
    reasons += [f"{tensor.dtype} is not supported" for tensor in tensors if tensor.dtype == torch.float64]
    reasons += [f"inputs lie on {tensors[0].device} and {t.device}" for t in tensors if t.device != tensors[0].device]
    return reasons


def runs_triton(*tensors: Tensor) -> bool:
    """Whether the op behind a public function launches its kernel: on a GPU, or in Triton's interpreter."""
    return not not_supported_reasons(*tensors)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _reasons_of_device(device: torch.device) -> tuple[str, ...]:
    return _found_once(device)


@cache
def _found_once(device: torch.device) -> tuple[str, ...]:
    """Asked by every call of every op, and always the same in a process."""
    if importlib.util.find_spec("triton") is None:
        return ("triton is not installed",)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return () if capability >= OLDEST_CAPABILITY else (f"compute capability {capability} is below 8.0",)
    if device.type == "cpu" and _interpreted():
        return ()
    return (f"device is {device.type}; kernels need a CUDA device",)


def _interpreted() -> bool:
    """Whether Triton runs in its interpreter, on CPU tensors: TRITON_INTERPRET=1, for tests."""
    from triton import knobs  # type: ignore[import-untyped]

    return bool(knobs.runtime.interpret)
