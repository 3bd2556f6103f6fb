"""The error rule that kernels are held to, and inputs whose neighbourhood is poisoned."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

# Largest relative error (Frobenius), where the plain form is not worse itself (a sum that nearly cancels).
RELATIVE_ERROR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

Function = Callable[..., Any]


def pytest_configure(config: pytest.Config) -> None:
    # Of torch 2.15's opcheck, which looks at gradients of tensors that keep none.
    config.addinivalue_line("filterwarnings", "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def guarded() -> Function:
    """Puts a tensor between rows of NaN, so that whoever reads beyond it is found out; strides are kept."""

    def guard(tensor: Tensor) -> Tensor:
        rows = tensor.contiguous().reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor.reshape(1, -1)
        poison = rows.new_full((8, rows.shape[1]), float("nan"))
        buffer = torch.cat([poison, rows, poison])
        return buffer[8:-8].view(tensor.shape)

    return guard


@pytest.fixture
def agrees() -> Function:
    """Asserts that op and plain form agree in outputs and gradients, twice, by the error rule.

    The rule is FlashAttention's: against the plain form in float64, the op's error is at most twice that of the plain
    form in the op's own dtype, and small in itself.
    """

    def compare(op: Function, plain: Function, inputs: list[Tensor]) -> None:
        coarsest = max((t.dtype for t in inputs if t.is_floating_point()), key=lambda dtype: torch.finfo(dtype).eps)
        exact = evaluate(plain, [t.double() if t.is_floating_point() else t for t in inputs])
        eager, ours, again = evaluate(plain, inputs), evaluate(op, inputs), evaluate(op, inputs)
        for number, (e, p, o, a) in enumerate(zip(exact, eager, ours, again, strict=True)):
            assert o.dtype == p.dtype, number
            assert o.shape == p.shape, number
            assert torch.equal(o, a), f"result {number} differs on repeat"
            hold_to_the_rule(o, p, e, coarsest, number)

    return compare


def evaluate(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs and the gradients of a fixed weighting of them."""
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    result = function(*leaves)
    outputs = list(result) if isinstance(result, tuple) else [result]
    generator = torch.Generator().manual_seed(1)
    # Values that bf16 holds, so that all dtypes are asked the same question.
    weights = [torch.randn(out.shape, generator=generator).bfloat16() for out in outputs]
    wanted = [leaf for leaf in leaves if leaf.is_floating_point()]
    grads = torch.autograd.grad(
        outputs, wanted, [w.to(o.dtype) for w, o in zip(weights, outputs, strict=True)], allow_unused=True
    )
    return [out.detach() for out in outputs] + [grad for grad in grads if grad is not None]


def hold_to_the_rule(ours: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype, number: int) -> None:
    if exact.numel() == 0:
        return
    assert ours.isfinite().all(), f"result {number} has values that are no numbers"
    rounding = 2 * (exact.to(ours.dtype) + 0.3 - 0.3 - exact.to(ours.dtype)).abs().max().item()
    rounding = max(rounding, 2 * torch.finfo(ours.dtype).eps * exact.abs().max().item())  # the plain form may be lucky
    error, allowed = ((t.double() - exact).abs().max().item() for t in (ours, eager))
    assert error <= 2 * allowed + rounding, f"result {number}: error {error}, the plain form's {allowed}"
    relative, plain = (((t.double() - exact).norm() / exact.norm().clamp(min=1e-12)).item() for t in (ours, eager))
    assert relative <= max(RELATIVE_ERROR[dtype], 3 * plain), f"result {number}: relative error {relative}"
