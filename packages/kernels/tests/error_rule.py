"""The error rule of the numerical tests, which holds on any processor.

A fixed tolerance depends on the vector width and the threads of the processor that it was chosen on. So fp32 and half
precision are compared with float64, and the error may be a stated multiple of the plain form's own, as FlashAttention's
tests do it. Identities that hold exactly on paper are tested in float64 instead.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Largest relative error (Frobenius), unless the plain form's is larger (a sum that nearly cancels).
RELATIVE_ERROR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
MULTIPLE = 3  # allowed multiple of the plain form's error: an unlucky order of sums here may be a lucky one elsewhere
NUM_MOVES = 4  # random roundings of the inputs, for the error that any form may have
FLOOR = 8 * torch.finfo(torch.float32).eps  # for whole models, of the largest entry: the plain form may be lucky
ZERO = 1e-7  # for whole models: a gradient that is zero on paper, such as that of a bias of keys, is only rounding

Function = Callable[..., Any]


def assert_agrees(op: Function, plain: Function, inputs: list[Tensor]) -> None:
    """Assert that an op and its plain form agree in outputs and gradients by the error rule, and that the op repeats.

    Against the plain form in float64, the op's error is at most `MULTIPLE` times that of the plain form in the op's own
    dtype, and its relative error is small. The plain form may be lucky in its few roundings, on one processor and not
    on another: its error counts as at least what one fp32 rounding of each input changes. A second run must be
    bit-equal.
    """
    coarsest = max((t.dtype for t in inputs if t.is_floating_point()), key=lambda dtype: torch.finfo(dtype).eps)
    doubles = [t.double() if t.is_floating_point() else t for t in inputs]
    exact, *moved = (evaluate(plain, moves) for moves in (doubles, *_roundings(doubles)))
    eager, ours, again = evaluate(plain, inputs), evaluate(op, inputs), evaluate(op, inputs)
    for number, (e, p, o, a) in enumerate(zip(exact, eager, ours, again, strict=True)):
        assert o.dtype == p.dtype, number
        assert o.shape == p.shape, number
        assert torch.equal(o, a), f"result {number} differs on repeat"
        _assert_error(o, [p, *(results[number] for results in moved)], e, coarsest, number)


def assert_as_exact(ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    """Assert that fp32 results of a model are as near to float64 as the plain form's.

    For each tensor, the largest error is at most `MULTIPLE` times the plain form's, plus `FLOOR` of the largest entry
    and `ZERO`.

    Args:
        ours: results to check, by name.
        plain: results of the plain form in fp32.
        exact: results of the plain form in float64.
    """
    assert ours.keys() == plain.keys() == exact.keys()
    for name, reference in exact.items():
        error, own = ((tensor[name].double() - reference).abs().max().item() for tensor in (ours, plain))
        allowed = MULTIPLE * own + FLOOR * reference.abs().max().item() + ZERO
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}, plain form {own:.3g}"


def evaluate(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Return outputs and the gradients of a fixed weighting of them."""
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    result = function(*leaves)
    outputs = list(result) if isinstance(result, tuple) else [result]
    generator = torch.Generator().manual_seed(1)
    # Values that bf16 represents, so that the weighting is the same in every dtype.
    weights = [torch.randn(out.shape, generator=generator).bfloat16() for out in outputs]
    differentiable = [leaf for leaf in leaves if leaf.is_floating_point()]
    grads = torch.autograd.grad(
        outputs, differentiable, [w.to(o) for w, o in zip(weights, outputs, strict=True)], allow_unused=True
    )
    return [out.detach() for out in outputs] + [grad for grad in grads if grad is not None]


def _roundings(inputs: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield float64 inputs with each value moved by at most one fp32 rounding, `NUM_MOVES` times."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(NUM_MOVES):
        signs = [torch.rand(t.shape, generator=generator, dtype=torch.float64) * 2 - 1 for t in inputs]
        eps = torch.finfo(torch.float32).eps
        yield [t * (1 + eps * sign) if t.is_floating_point() else t for t, sign in zip(inputs, signs, strict=True)]


def _assert_error(ours: Tensor, plain: list[Tensor], exact: Tensor, dtype: torch.dtype, number: int) -> None:
    if exact.numel() == 0:
        return
    assert ours.isfinite().all(), f"result {number} has values that are not finite"
    rounding = 2 * (exact.to(ours.dtype) + 0.3 - 0.3 - exact.to(ours.dtype)).abs().max().item()
    rounding = max(rounding, 2 * torch.finfo(ours.dtype).eps * exact.abs().max().item())
    error, *allowed = ((t.double() - exact).abs().max().item() for t in (ours, *plain))
    assert error <= MULTIPLE * max(allowed) + rounding, f"result {number}: error {error}, plain form {allowed}"
    relative, *allowed = ((t.double() - exact).norm().item() for t in (ours, *plain))
    limit = max(RELATIVE_ERROR[dtype] * exact.norm().item(), 3 * max(allowed))
    assert relative <= limit, f"result {number}: error {relative} (Frobenius), allowed {limit}"
