"""Every implementation against float64, before any is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from problems import OURS, Function, Problem
from torch import Tensor

RELATIVE_ERROR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Error:
    """The largest relative error (Frobenius) among outputs and gradients, and the largest that is allowed."""

    relative: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.relative <= self.allowed


def check(problem: Problem) -> dict[str, Error | str]:
    """Name of an implementation -> its error, or why there is none: one that fails is told, and stops no other.

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
            found[name] = in_a_line(error)
    return found


def in_a_line(error: Exception) -> str:
    """What went wrong, without the rest of it."""
    return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def evaluate(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of a fixed weighting of them."""
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    outputs = as_tuple(function(*(leaf * 1 for leaf in leaves)))  # `* 1`: an op may write into what it is given
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(out.shape, generator=generator).bfloat16().to(out.device, out.dtype) for out in outputs]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, leaves, weights)]


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _errors(ours: list[Tensor], exact: list[Tensor]) -> list[float]:
    pairs = zip(ours, exact, strict=True)
    return [((a.double() - e).norm() / e.norm().clamp(min=1e-12)).item() for a, e in pairs]
