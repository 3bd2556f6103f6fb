"""Attention of queries to keys, in one pass over the heads, by the fastest implementation that can take it."""

# B batch, N tokens, H heads, D width of a head, S sequences of one long row

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vfm_kernels import backends
from vfm_kernels.attention_plain import attention_plain, attention_plain_backward
from vfm_kernels.dispatch import runs_triton
from vfm_kernels.library import define, differentiate
from vfm_kernels.pattern import SCHEMA, Pattern
from vfm_kernels.precision import at_least_fp32


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    sin: Tensor | None = None,
    cos: Tensor | None = None,
    num_prefix_tokens: int = 0,
    positions: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """`softmax(q k^T scale) v` for each head; queries and keys may be turned by rotary positions first.

    Any strides are taken as they are if the channels of a head lie side by side. Heads that torch lays out as
    (B, H, N, D) come as `q.transpose(1, 2)`. On a CPU this is torch's own `scaled_dot_product_attention`.

    Args:
        q: (B, N, H, D), floating point.
        k: like `q`.
        v: like `q`.
        causal: a token sees itself and those before it, and no others.
        scale: of the scores; 1 / sqrt(D) by default.
        sin: (P, D / 2) or (B, P, D / 2): angles of `rope_2d`, with whose other arguments the next two agree.
        cos: like `sin`.
        num_prefix_tokens: leading tokens without a position.
        positions: (B, N) integers: each token's row of the table; negative means none.
        cu_seqlens: (S + 1,) int32, from 0 to N: sequences that lie one behind the other in a batch of 1 and do not see
            each other; an empty one is fine.
        max_seqlen: the longest of them, which `cu_seqlens` cannot tell without waiting for the GPU; N by default.
        backend: the name of one in `explain`, taken or refused; by default the first that can and is expected to win.

    Returns:
        (B, N, H, D), in the dtype of `q`.

    Raises:
        ValueError: shapes that do not fit, or a backend (or `use_kernels("triton")`) that cannot run; says why.

    Source: Dao et al. 2022, FlashAttention (arXiv:2205.14135); Dao 2023, FlashAttention-2 (arXiv:2307.08691).
    """
    pattern = Pattern.of(q, k, v, causal, scale, sin, cos, num_prefix_tokens, positions, cu_seqlens, max_seqlen)
    return backends.attend(q, k, v, pattern, backend)


def attention_packed(qkv: Tensor, *, backend: str | None = None, **pattern: Any) -> Tensor:
    """`attention` of queries, keys and values that one linear layer wrote, whose gradient is one buffer too.

    With the three apart, autograd would copy their gradients together again.

    Args:
        qkv: (B, N, 3, H, D).
        backend: as for `attention`.
        **pattern: the other keywords of `attention`.

    Returns:
        (B, N, H, D).

    Raises:
        ValueError: as `attention`.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv is {tuple(qkv.shape)}; it must be (B, N, 3, H, D)")
    q, k, v = qkv.unbind(2)
    known = Pattern.of(q, k, v, **pattern)
    name = backends.choose(q, known, backend)
    if not name.startswith("triton"):
        return backends.attend(q, k, v, known, name)
    out, _ = torch.ops.vfm_kernels.attention_packed(qkv, *known, name == "triton_short")
    mixed: Tensor = out
    return mixed


class _Saved(NamedTuple):
    """The arguments of a backward op, told apart: one packed tensor of heads, or three."""

    d_out: Tensor
    out: Tensor
    lse: Tensor
    heads: tuple[Tensor, Tensor, Tensor]
    packed: bool
    pattern: Pattern

    @classmethod
    def of(cls, d_out: Tensor, out: Tensor, lse: Tensor, *arguments: Any) -> "_Saved":
        heads, packed, pattern = _told_apart(arguments)
        return cls(d_out, out, lse, heads, packed, pattern)

    def gradients(self) -> tuple[Tensor | None, tuple[Tensor, Tensor, Tensor]]:
        """The packed buffer of the gradients, if there is one, and the gradients of the heads."""
        q = self.heads[0]
        if self.packed:
            batch, num_tokens, num_heads, width = q.shape
            whole = q.new_empty((batch, num_tokens, 3, num_heads, width))
            d_q, d_k, d_v = whole.unbind(2)
            return whole, (d_q, d_k, d_v)
        d_q, d_k, d_v = (q.new_empty(q.shape) for _ in range(3))
        return None, (d_q, d_k, d_v)


def _told_apart(arguments: tuple[Any, ...]) -> tuple[tuple[Tensor, Tensor, Tensor], bool, Pattern]:
    heads, pattern = arguments[: -len(Pattern._fields)], Pattern(*arguments[-len(Pattern._fields) :])
    q, k, v = heads[0].unbind(2) if len(heads) == 1 else heads
    return (q, k, v), len(heads) == 1, pattern


def forward_buffers(q: Tensor) -> tuple[Tensor, Tensor]:
    """The output (B, N, H, D), and the logarithms of the softmax's sums (B, H, N)."""
    batch, num_tokens, num_heads, _ = q.shape
    lse = torch.empty(batch, num_heads, num_tokens, dtype=at_least_fp32(q[:0]).dtype, device=q.device)
    return q.new_empty(q.shape), lse


def _run(*arguments: Any) -> tuple[Tensor, Tensor]:
    heads, _, pattern = _told_apart(arguments[:-1])
    if runs_triton(heads[0]):
        from vfm_kernels.launch import attention as launched

        return launched.forward(*heads, pattern, short=arguments[-1])
    out, lse = attention_plain(*heads, pattern)
    return out.contiguous(), lse


def _fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    return forward_buffers(_told_apart(arguments[:-1])[0][0])


def _run_backward(*arguments: Any) -> Any:
    saved = _Saved.of(*arguments)
    whole, gradients = saved.gradients()
    if runs_triton(saved.d_out):
        from vfm_kernels.launch import attention as launched

        launched.backward(*saved[:3], *saved.heads, *gradients, saved.pattern)
    else:
        plain = attention_plain_backward(*saved[:3], *saved.heads, saved.pattern)
        for buffer, gradient in zip(gradients, plain, strict=True):
            buffer.copy_(gradient)
    return gradients if whole is None else whole


def _fake_backward(*arguments: Any) -> Any:
    whole, gradients = _Saved.of(*arguments).gradients()
    return gradients if whole is None else whole


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, lse = output
    ctx.mark_non_differentiable(lse)
    known = inputs[:-1]
    ctx.save_for_backward(out, lse, *(value for value in known if isinstance(value, Tensor)))
    ctx.known = [None if isinstance(value, Tensor) else value for value in known]
    ctx.is_tensor = [isinstance(value, Tensor) for value in known]


def _backward_of(name: str, num_heads_tensors: int) -> Any:
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *tensors = ctx.saved_tensors
        left = iter(tensors)
        known = [next(left) if tensor else value for value, tensor in zip(ctx.known, ctx.is_tensor, strict=True)]
        gradients = getattr(torch.ops.vfm_kernels, f"{name}_backward")(d_out, out, lse, *known)
        gradients = (gradients,) if num_heads_tensors == 1 else tuple(gradients)
        return *gradients, *[None] * (len(known) - num_heads_tensors + 1)

    return backward


for _name, _heads, _gradients in (
    ("attention", "Tensor q, Tensor k, Tensor v", "(Tensor, Tensor, Tensor)"),
    ("attention_packed", "Tensor qkv", "Tensor"),
):
    define(f"{_name}({_heads}, {SCHEMA}, bool short) -> (Tensor, Tensor)", _run, _fake)
    define(
        f"{_name}_backward(Tensor d_out, Tensor out, Tensor lse, {_heads}, {SCHEMA}) -> {_gradients}",
        _run_backward,
        _fake_backward,
    )
    differentiate(f"vfm_kernels::{_name}", _backward_of(_name, _heads.count("Tensor")), _keep)
