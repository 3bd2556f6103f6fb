"""The ops behind our backends of attention, with their gradients, for separate or packed tensors of heads."""

# B batch, N tokens, H heads, D width of a head

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vfm_kernels.dispatch.dispatch import launchers, runs_triton
from vfm_kernels.dispatch.library import Op
from vfm_kernels.multihead.attention_plain import attention_plain, attention_plain_backward
from vfm_kernels.pattern import SCHEMA, Pattern

Heads = tuple[Tensor, Tensor, Tensor]


def forward_buffers(q: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate the output (B, N, H, D) and the logarithms of the softmax's sums (B, H, N)."""
    batch, num_tokens, num_heads, _ = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((batch, num_heads, num_tokens), dtype=dtype)


def _forward(heads: Heads, pattern: Pattern, short: bool) -> tuple[Tensor, Tensor]:
    if runs_triton(heads[0]):
        buffers = forward_buffers(heads[0])
        launchers().attention_forward(*heads, *buffers, pattern, short=short)
        return buffers
    out, lse = attention_plain(*heads, pattern)
    return out.contiguous(), lse


def _backward(d_out: Tensor, out: Tensor, lse: Tensor, heads: Heads, pattern: Pattern, gradients: Heads) -> None:
    """Write the gradients of the heads into their buffers."""
    if runs_triton(d_out):
        launchers().attention_backward(d_out, out, lse, *heads, *gradients, pattern)
        return
    plain = attention_plain_backward(d_out, out, lse, *heads, pattern)
    for buffer, gradient in zip(gradients, plain, strict=True):
        buffer.copy_(gradient)


def _run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _forward((q, k, v), Pattern(*rest[:-1]), rest[-1])


def _run_packed(qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(2)
    return _forward((q, k, v), Pattern(*rest[:-1]), rest[-1])


def _buffers(q: Tensor) -> Heads:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _run_backward(d_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *pattern: Any) -> Heads:
    gradients = _buffers(q)
    _backward(d_out, out, lse, (q, k, v), Pattern(*pattern), gradients)
    return gradients


def _run_packed_backward(d_out: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, *pattern: Any) -> Tensor:
    packed = qkv.new_empty(qkv.shape)
    q, k, v = qkv.unbind(2)
    # Views, so that the gradients are written where the linear layer's backward pass reads them, without a copy.
    d_q, d_k, d_v = packed.unbind(2)
    _backward(d_out, out, lse, (q, k, v), Pattern(*pattern), (d_q, d_k, d_v))
    return packed


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    heads = inputs[: -len(Pattern._fields) - 1]
    pattern = Pattern(*inputs[-len(Pattern._fields) - 1 : -1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros as the gradient of the sums would be unused
    # Only tensors may be saved for the backward; the numbers are kept next to them.
    ctx.pattern = pattern._replace(sin=None, cos=None, positions=None, cu_seqlens=None)
    ctx.save_for_backward(*output, pattern.sin, pattern.cos, pattern.positions, pattern.cu_seqlens, *heads)


def _gradient(backward_op: Op) -> Callable[..., tuple[Tensor | None, ...]]:
    """Build a gradient that calls an op for the heads. Pattern and kernel have no gradient."""

    def backward(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        out, lse, sin, cos, positions, cu_seqlens, *heads = ctx.saved_tensors
        pattern = ctx.pattern._replace(sin=sin, cos=cos, positions=positions, cu_seqlens=cu_seqlens)
        gradients = backward_op(d_out, out, lse, *heads, *pattern)
        if isinstance(gradients, Tensor):
            gradients = (gradients,)
        return *gradients, *[None] * (len(Pattern._fields) + 1)

    return backward


SAVED = "Tensor d_out, Tensor out, Tensor lse"
attention_op = Op(
    f"attention(Tensor q, Tensor k, Tensor v, {SCHEMA}, bool short) -> (Tensor, Tensor)",
    _run,
    lambda q, *_: forward_buffers(q),
)
attention_packed_op = Op(
    f"attention_packed(Tensor qkv, {SCHEMA}, bool short) -> (Tensor, Tensor)",
    _run_packed,
    lambda qkv, *_: forward_buffers(qkv[:, :, 0]),
)
_BACKWARD = Op(
    f"attention_backward({SAVED}, Tensor q, Tensor k, Tensor v, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda d_out, out, lse, q, *_: _buffers(q),
)
_PACKED_BACKWARD = Op(
    f"attention_packed_backward({SAVED}, Tensor qkv, {SCHEMA}) -> Tensor",
    _run_packed_backward,
    lambda d_out, out, lse, qkv, *_: qkv.new_empty(qkv.shape),
)
attention_op.differentiate(_gradient(_BACKWARD), _keep)
attention_packed_op.differentiate(_gradient(_PACKED_BACKWARD), _keep)


def _operations(heads: Any, num_products: int, pattern: tuple[Any, ...]) -> int:
    """Count the operations of products of N x N scores. A sequence of a long row counts as the longest one."""
    batch, num_tokens, num_heads, width = heads
    max_seqlen = pattern[Pattern._fields.index("max_seqlen")]
    return int(2 * num_products * batch * num_heads * num_tokens * min(num_tokens, max_seqlen) * width)


def _count(op: Op, num_products: int, first: int, num_heads_inputs: int) -> None:
    """Register an op with torch's counters of operations.

    Args:
        op: The op.
        num_products: Matrix products of N x N scores.
        first: Index of the heads among the arguments.
        num_heads_inputs: 3 for separate heads, 1 for packed ones.
    """

    def count(*shapes: Any, **_: Any) -> int:
        heads = shapes[first]
        pattern = shapes[first + num_heads_inputs :]
        return _operations(heads if len(heads) == 4 else (*heads[:2], *heads[3:]), num_products, pattern)

    packet = getattr(torch.ops.vfm_kernels, op.name)
    register_flop_formula(packet)(count)


_count(attention_op, 2, 0, 3)
_count(attention_packed_op, 2, 0, 1)
# Five products: the scores again, and the gradients of weights, values, queries and keys.
_count(_BACKWARD, 5, 3, 3)
_count(_PACKED_BACKWARD, 5, 3, 1)
