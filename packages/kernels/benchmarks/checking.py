"""Comparison of every implementation with float64, before any is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from problems import OURS, Function, Problem
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vfm_kernels.launches import recorded_launches

RELATIVE_ERROR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Error:
    """Largest relative error (Frobenius) among outputs and gradients, the largest allowed one, and what ran.

    Attributes:
        relative: the error.
        allowed: the largest error that is allowed.
        launches: number of launches of our kernels.
        library_calls: number of torch's operations that compute, see `Dispatched`.
    """

    relative: float
    allowed: float
    launches: int = 0
    library_calls: int = 0

    @property
    def holds(self) -> bool:
        """True if the error is allowed."""
        return self.relative <= self.allowed


def check(problem: Problem) -> dict[str, Error | str]:
    """Return the error of each implementation by name, or why there is none; a failure does not stop the others.

    Three times the error of the plain form in the same dtype is allowed. What was launched must be what the name says.
    """
    exact = evaluate(problem.plain, [leaf.double() for leaf in problem.inputs])
    plain = _errors(evaluate(problem.plain, problem.inputs), exact)
    coarsest = max((leaf.dtype for leaf in problem.inputs), key=lambda dtype: torch.finfo(dtype).eps)
    allowed = max(RELATIVE_ERROR[coarsest], 3 * max(plain))
    found: dict[str, Error | str] = {}
    for name, function in problem.implementations.items():
        try:
            with recorded_launches() as launches:
                ours = evaluate(function, problem.inputs)
            with Dispatched() as dispatched:
                evaluate(function, problem.inputs)
            found[name] = Error(max(_errors(ours, exact)), allowed, len(launches), dispatched.num_computing)
            reasons = [misnamed(name in OURS, launches)]
            if name in OURS:
                same = all(map(torch.equal, ours, evaluate(function, problem.inputs)))
                waits = ", ".join(dict.fromkeys(dispatched.host_reads))
                reasons += ["" if same else "it is not bit-equal on repeat", waits and f"the host waits in {waits}"]
            if any(reasons):
                found[name] = f"failed: {'; '.join(filter(None, reasons))}"
        except Exception as error:
            found[name] = one_line(error)
    return found


HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")
ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "lift_fresh")


class Dispatched(TorchDispatchMode):
    """Lists torch's operations that ran.

    Attributes:
        host_reads: those by which the host reads a value or a number of elements, and so waits for the device.
        num_computing: number of those that compute. Views and allocations do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.host_reads: list[str] = []
        self.num_computing = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname in HOST_READS:
            self.host_reads.append(func._opname)
        self.num_computing += not (func.is_view or func._opname in ALLOCATIONS)
        return func(*args, **(kwargs or {}))


def misnamed(is_ours: bool, launches: list[str]) -> str:
    """Return why an arm of a comparison did not run what its name says; empty if it did."""
    if is_ours:
        return "" if launches else "it launched none of our kernels, so another implementation ran"
    return f"it launched our {', '.join(dict.fromkeys(launches))}" if launches else ""


def one_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def evaluate(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Return outputs and the gradients of a fixed weighting of them."""
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    outputs = as_tuple(function(*leaves))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(out.shape, generator=generator).bfloat16().to(out.device, out.dtype) for out in outputs]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, leaves, weights)]


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Return outputs as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _errors(ours: list[Tensor], exact: list[Tensor]) -> list[float]:
    pairs = zip(ours, exact, strict=True)
    return [((a.double() - e).norm() / e.norm().clamp(min=1e-12)).item() for a, e in pairs]
