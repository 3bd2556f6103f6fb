"""Choice between the plain form of an op, which is its specification, and the Triton kernel.

`auto` takes the kernel where it was measured to be faster on the GPU's architecture (`measured`) and the plain form
elsewhere, so nothing changes on a CPU. `reference` never takes a kernel. `triton` takes it, or raises with every reason
why it cannot run.
"""

import importlib.util
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from vfm_kernels.dispatch.choosing import Size
from vfm_kernels.dispatch.measured import is_measured_faster, measurements

F = TypeVar("F", bound=Callable[..., Any])
Kernels = Literal["auto", "reference", "triton"]

OLDEST_CAPABILITY = (8, 0)  # Ampere: the oldest architecture that the tests compile the kernels for


@dataclass
class KernelSettings:
    """Settings of the ops in this process, as `torch.backends` holds torch's. `use_kernels` changes them.

    They belong to the process and not to a thread or a context variable. With activation checkpointing on a GPU, the
    forward is computed again in autograd's own thread, and must take the same implementation there.
    """

    choice: Kernels = "auto"


SETTINGS = KernelSettings()


@contextmanager
def use_kernels(choice: Kernels) -> Iterator[None]:
    """Select the implementation of all ops in this process.

    Use it as a context manager. The earlier choice returns at the end of the block.

    Args:
        choice: `auto` takes a kernel where it was measured to be faster, `triton` always, `reference` never.

    Raises:
        ValueError: If `choice` is unknown.
    """
    if choice not in get_args(Kernels):
        raise ValueError(f"{choice!r} is not a valid choice of kernels; choose from {', '.join(get_args(Kernels))}")
    before = SETTINGS.choice
    SETTINGS.choice = choice
    try:
        yield
    finally:
        SETTINGS.choice = before


def fused(op: str, *tensors: Tensor) -> bool:
    """Check whether an op on these tensors takes its kernel under the current choice.

    Args:
        op: Name of the op in the table of measurements.
        *tensors: Inputs. The last dimension of the first is the op's width.

    Raises:
        ValueError: If the choice is `triton` and the kernel cannot run. The message gives the reasons.
    """
    if not kernels_wanted(*tensors):
        return False
    if SETTINGS.choice == "triton":
        return True
    # Without measurements `auto` means torch, so no call pays for looking up a size.
    if not _table_has_rows():
        return False
    first = tensors[0]
    width = max(1, specialized(first.shape[-1]))
    sizes = (specialized(first.numel()) // width, 0, width, str(first.dtype).removeprefix("torch."))
    faster: bool = _measured_faster(first.device, op, *sizes, needs_gradient(*tensors), torch.compiler.is_compiling())
    return faster


def needs_gradient(*tensors: Tensor) -> bool:
    """Check whether a backward pass will follow, so that its time counts too."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def kernels_wanted(*tensors: Tensor) -> bool:
    """Check whether the current choice allows kernels, and whether they can run on these tensors.

    Raises:
        ValueError: If the choice is `triton` and kernels cannot run. The message gives the reasons.
    """
    choice = SETTINGS.choice
    if choice == "reference" or (choice == "auto" and tensors[0].device.type != "cuda"):
        return False
    reasons = not_supported_reasons(*tensors)
    if reasons and choice == "triton":
        raise ValueError(f"kernels 'triton' cannot run here: {'; '.join(reasons)}")
    return not reasons


def not_supported_reasons(*tensors: Tensor) -> list[str]:
    """List the reasons why the kernels cannot run on these tensors.

    The list is empty if they can.
    """
    reasons = list(_device_reasons(tensors[0].device))
    reasons += [f"{tensor.dtype} is not supported" for tensor in tensors if tensor.dtype == torch.float64]
    reasons += [f"inputs are on {tensors[0].device} and {t.device}" for t in tensors if t.device != tensors[0].device]
    return reasons


def runs_triton(*tensors: Tensor) -> bool:
    """Check whether a public function launches a kernel for these tensors.

    Kernels run on a GPU, and on a CPU in Triton's interpreter.
    """
    return not not_supported_reasons(*tensors)


def launchers() -> ModuleType:
    """Import the functions that launch the kernels.

    The import is here because Triton is optional, and because a process that launches no kernel need not load it.
    """
    from vfm_kernels import triton

    return triton


def constant_when_compiled(function: F) -> F:
    """Mark a function whose result is a constant for `torch.compile`.

    The mark is the same as `torch.compiler.assume_constant_result`. Importing the compiler for it would take as long as
    importing torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def specialized(size: int) -> int:
    """Convert a size to a constant, for which `torch.compile` builds a graph. `int` would leave it symbolic there."""
    return operator.index(size)


# `torch.compile` could not trace the search for an installed package.
@constant_when_compiled
def _device_reasons(device: torch.device) -> tuple[str, ...]:
    return _cached_device_reasons(device)


# `torch.compile` could not trace the table.
@constant_when_compiled
def _table_has_rows() -> bool:
    return bool(measurements())


@constant_when_compiled
def _measured_faster(device: torch.device, *size: Any) -> bool:
    return is_measured_faster(device, Size(*size))


# Cached because every call of every op needs it, and it never changes in a process.
@cache
def _cached_device_reasons(device: torch.device) -> tuple[str, ...]:
    if importlib.util.find_spec("triton") is None:
        return ("triton is not installed",)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= OLDEST_CAPABILITY:
            return ()
        return (f"compute capability {capability} is below 8.0",)
    if device.type == "cpu" and _interpreted():
        return ()
    return (f"device is {device.type}; kernels need a CUDA device",)


def _interpreted() -> bool:
    """Check whether Triton interprets kernels on CPU tensors (TRITON_INTERPRET=1, for tests)."""
    from triton import knobs

    return bool(knobs.runtime.interpret)
