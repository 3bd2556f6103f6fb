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
NUM_NEIGHBOURS = 4  # inputs next to the given ones at which the plain form's error is measured too
FLOOR = 8 * torch.finfo(torch.float32).eps  # for whole models, of the largest entry: the plain form may be lucky
ZERO = 1e-7  # for whole models: a gradient that is zero on paper, such as that of a bias of keys, is only rounding

Function = Callable[..., Any]


def assert_agrees(op: Function, plain: Function, inputs: list[Tensor], recomputed_scale: float = 1.0) -> None:
    """Assert that an op and its plain form agree in outputs and gradients by the error rule, and that the op repeats.

    Against the plain form in float64, the op's error is at most `MULTIPLE` times that of the plain form in the op's own
    dtype, and its relative error is small. The plain form may be lucky in its few roundings, on one processor and not
    on another. So its error is the largest one at the inputs and at `NUM_NEIGHBOURS` neighbours, whose values differ by
    a rounding. A second run must be bit-equal.

    Args:
        op: the op.
        plain: its plain form, with the same arguments.
        inputs: arguments of both.
        recomputed_scale: scale of logits that the op computes again for their gradients. A product of another shape
            rounds otherwise on some processors, so exp(logit - logsumexp) is wrong by the scale times a rounding. The
            plain form computes logits once, and its errors cancel.
    """
    coarsest = max((t.dtype for t in inputs if t.is_floating_point()), key=lambda dtype: torch.finfo(dtype).eps)
    plain_results = [_eager_and_exact(plain, each) for each in (inputs, *_neighbours(inputs))]
    ours, again = evaluate(op, inputs), evaluate(op, inputs)
    assert len(ours) == len(plain_results[0][0])
    for number, (o, a) in enumerate(zip(ours, again, strict=True)):
        pairs = [(eager[number], exact[number]) for eager, exact in plain_results]
        assert o.dtype == pairs[0][0].dtype, number
        assert o.shape == pairs[0][0].shape, number
        assert torch.equal(o, a), f"result {number} differs on repeat"
        _assert_error(o, pairs, coarsest, recomputed_scale, number)


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


def _eager_and_exact(plain: Function, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Evaluate the plain form in the dtypes of the inputs, and in float64."""
    return evaluate(plain, inputs), evaluate(plain, [t.double() if t.is_floating_point() else t for t in inputs])


def _neighbours(inputs: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield inputs whose floating-point values are up or down by one rounding at random, `NUM_NEIGHBOURS` times."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(NUM_NEIGHBOURS):
        moved = []
        for t in inputs:
            signs = torch.randint(0, 2, t.shape, generator=generator).to(t.device) * 2 - 1
            eps = torch.finfo(t.dtype).eps if t.is_floating_point() else 0
            moved.append((t.double() * (1 + eps * signs)).to(t.dtype) if eps else t)
        yield moved


def _assert_error(
    ours: Tensor, plain: list[tuple[Tensor, Tensor]], dtype: torch.dtype, scale: float, number: int
) -> None:
    """Check a result, given the plain form's as eager and exact at the inputs and at their neighbours."""
    exact = plain[0][1]
    if exact.numel() == 0:
        return
    assert ours.isfinite().all(), f"result {number} has values that are not finite"
    rounding = 2 * (exact.to(ours.dtype) + 0.3 - 0.3 - exact.to(ours.dtype)).abs().max().item()
    rounding = max(rounding, 2 * scale * torch.finfo(ours.dtype).eps * exact.abs().max().item())
    difference, plain_differences = ours.double() - exact, [p.double() - e for p, e in plain]
    error, allowed = difference.abs().max().item(), max(each.abs().max().item() for each in plain_differences)
    assert error <= MULTIPLE * allowed + rounding, f"result {number}: error {error}, plain form {allowed}"
    error, allowed = difference.norm().item(), max(each.norm().item() for each in plain_differences)
    limit = max(scale * RELATIVE_ERROR[dtype] * exact.norm().item(), MULTIPLE * allowed)
    assert error <= limit, f"result {number}: error {error} (Frobenius), allowed {limit}"
