"""Comparison of every implementation with float64, before any is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from problems import OURS, Function, Problem
from torch import Tensor

RELATIVE_ERROR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Error:
    """Largest relative error (Frobenius) among outputs and gradients, and the largest allowed one."""

    relative: float
    allowed: float

    @property
    def holds(self) -> bool:
        """True if the error is allowed."""
        return self.relative <= self.allowed


def check(problem: Problem) -> dict[str, Error | str]:
    """Return the error of each implementation by name, or why there is none; a failure does not stop the others.

    Three times the error of the plain form in the same dtype is allowed.
    """
    exact = evaluate(problem.plain, [leaf.double() for leaf in problem.inputs])
    plain = _errors(evaluate(problem.plain, problem.inputs), exact)
    coarsest = max((leaf.dtype for leaf in problem.inputs), key=lambda dtype: torch.finfo(dtype).eps)
    allowed = max(RELATIVE_ERROR[coarsest], 3 * max(plain))
    found: dict[str, Error | str] = {}
    for name, function in problem.implementations.items():
        try:
            ours = evaluate(function, problem.inputs)
            found[name] = Error(max(_errors(ours, exact)), allowed)
            if name in OURS and not all(map(torch.equal, ours, evaluate(function, problem.inputs))):
                found[name] = "failed: it is not bit-equal on repeat"
        except Exception as error:
            found[name] = one_line(error)
    return found


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
