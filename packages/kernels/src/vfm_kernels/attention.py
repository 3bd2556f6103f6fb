"""Attention of queries to keys, in one pass over the heads, by the fastest implementation that can take it."""

# B batch, N tokens, H heads, D width of a head, S sequences in one long row

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vfm_kernels import backends
from vfm_kernels.attention_plain import attention_plain, attention_plain_backward
from vfm_kernels.dispatch import launchers, runs_triton
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
    visible: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute `softmax(q k^T scale) v` for each head; rotary positions may rotate queries and keys first.

    Any strides are accepted if the channels of a head are adjacent. Pass heads that torch lays out as (B, H, N, D) as
    `q.transpose(1, 2)`. On a CPU this is torch's own `scaled_dot_product_attention`.

    Args:
        q: (B, N, H, D), floating point.
        k: like `q`.
        v: like `q`.
        causal: a token sees only itself and earlier tokens.
        scale: factor of the scores; 1 / sqrt(D) by default.
        sin: (P, D / 2) or, with angles for each sample, (B, P, D / 2). Channel pairs (0, 1), (2, 3), ... are rotated as
            in timm's `Eva`. Not differentiated.
        cos: like `sin`.
        num_prefix_tokens: leading tokens without a position (CLS, registers); token n has row n - num_prefix_tokens.
        positions: (B, N) integers below P: each token's row of the table, for dropped patches; negative means none.
        cu_seqlens: (S + 1,) int32, from 0 to N: boundaries of sequences that are concatenated in a batch of 1 and do
            not see each other; a sequence may be empty.
        max_seqlen: length of the longest sequence, which `cu_seqlens` gives only after a wait for the GPU; default N.
        visible: booleans that are broadcast to (B, H, N, N), True where a query (row) sees a key (column); every query
            must see a key. Not with `causal` or `cu_seqlens`.
        backend: name of the backend to use, as `explain` lists them; by default the first that can run and is expected
            to be fastest.

    Returns:
        (B, N, H, D), in the dtype of `q`.

    Raises:
        ValueError: shapes do not fit, or a forced backend (or `use_kernels("triton")`) cannot run.

    Source: Dao et al. 2022, FlashAttention (arXiv:2205.14135); Dao 2023, FlashAttention-2 (arXiv:2307.08691).
    """
    pattern = Pattern.from_arguments(
        q, k, v, causal, scale, sin, cos, num_prefix_tokens, positions, cu_seqlens, max_seqlen
    )
    if visible is not None:
        _check_visible(visible, q, pattern)
    return backends.attend(q, k, v, pattern, backend, visible)


def _check_visible(visible: Tensor, q: Tensor, pattern: Pattern) -> None:
    batch, num_tokens, num_heads, _ = q.shape
    full = (batch, num_heads, num_tokens, num_tokens)
    fits = visible.ndim == 4 and all(one in (1, size) for one, size in zip(visible.shape, full, strict=True))
    if visible.dtype != torch.bool or not fits:
        raise ValueError(
            f"expected visible as booleans that are broadcast to {full}, got {visible.dtype} {tuple(visible.shape)}"
        )
    if pattern.causal or pattern.cu_seqlens is not None:
        raise ValueError("visible excludes causal and cu_seqlens: put their masks into it")


def attention_packed(
    qkv: Tensor, *, visible: Tensor | None = None, backend: str | None = None, **pattern: Any
) -> Tensor:
    """Compute `attention` of queries, keys and values that one linear layer wrote; their gradient is one buffer too.

    With three separate tensors, autograd would copy their gradients into one.

    Args:
        qkv: (B, N, 3, H, D).
        visible: as for `attention`.
        backend: as for `attention`.
        **pattern: the other keywords of `attention`.

    Returns:
        (B, N, H, D).

    Raises:
        ValueError: as for `attention`.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"expected qkv of shape (B, N, 3, H, D), got {tuple(qkv.shape)}")
    q, k, v = qkv.unbind(2)
    if visible is not None:
        return attention(q, k, v, visible=visible, backend=backend, **pattern)
    checked = Pattern.from_arguments(q, k, v, **pattern)
    name = backends.choose(q, checked, backend)
    if not name.startswith("triton"):
        return backends.attend(q, k, v, checked, name)
    out, _ = torch.ops.vfm_kernels.attention_packed(qkv, *checked, name == "triton_short")
    mixed: Tensor = out
    return mixed


class _Arguments(NamedTuple):
    """Arguments of an op, which has one packed tensor of heads or three."""

    heads: tuple[Tensor, Tensor, Tensor]
    packed: bool
    pattern: Pattern

    @classmethod
    def parse(cls, arguments: tuple[Any, ...]) -> "_Arguments":
        heads, pattern = arguments[: -len(Pattern._fields)], Pattern(*arguments[-len(Pattern._fields) :])
        q, k, v = heads[0].unbind(2) if len(heads) == 1 else heads
        return cls((q, k, v), len(heads) == 1, pattern)

    def gradient_buffers(self) -> tuple[Tensor | None, tuple[Tensor, Tensor, Tensor]]:
        """Return the packed buffer of the gradients, if there is one, and the gradients of the heads."""
        q = self.heads[0]
        if self.packed:
            batch, num_tokens, num_heads, width = q.shape
            packed = q.new_empty((batch, num_tokens, 3, num_heads, width))
            d_q, d_k, d_v = packed.unbind(2)
            return packed, (d_q, d_k, d_v)
        d_q, d_k, d_v = (q.new_empty(q.shape) for _ in range(3))
        return None, (d_q, d_k, d_v)


def forward_buffers(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return buffers of the output (B, N, H, D) and of the logarithms of the softmax's sums (B, H, N)."""
    batch, num_tokens, num_heads, _ = q.shape
    lse = torch.empty(batch, num_heads, num_tokens, dtype=at_least_fp32(q[:0]).dtype, device=q.device)
    return q.new_empty(q.shape), lse


def _run(*arguments: Any) -> tuple[Tensor, Tensor]:
    heads, _, pattern = _Arguments.parse(arguments[:-1])
    if runs_triton(heads[0]):
        buffers = forward_buffers(heads[0])
        launchers().attention_forward(*heads, *buffers, pattern, short=arguments[-1])
        return buffers
    out, lse = attention_plain(*heads, pattern)
    return out.contiguous(), lse


def _fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    return forward_buffers(_Arguments.parse(arguments[:-1]).heads[0])


def _run_backward(d_out: Tensor, out: Tensor, lse: Tensor, *arguments: Any) -> Any:
    parsed = _Arguments.parse(arguments)
    packed, gradients = parsed.gradient_buffers()
    if runs_triton(d_out):
        launchers().attention_backward(d_out, out, lse, *parsed.heads, *gradients, parsed.pattern)
    else:
        plain = attention_plain_backward(d_out, out, lse, *parsed.heads, parsed.pattern)
        for buffer, gradient in zip(gradients, plain, strict=True):
            buffer.copy_(gradient)
    return gradients if packed is None else packed


def _fake_backward(d_out: Tensor, out: Tensor, lse: Tensor, *arguments: Any) -> Any:
    packed, gradients = _Arguments.parse(arguments).gradient_buffers()
    return gradients if packed is None else packed


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, lse = output
    ctx.mark_non_differentiable(lse)
    arguments = inputs[:-1]
    # Only tensors may be saved for the backward; the others are kept beside them, in their places.
    ctx.save_for_backward(out, lse, *(value for value in arguments if isinstance(value, Tensor)))
    ctx.constants = [None if isinstance(value, Tensor) else value for value in arguments]
    ctx.is_tensor = [isinstance(value, Tensor) for value in arguments]


def _backward_of(name: str, num_heads_tensors: int) -> Any:
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *saved = ctx.saved_tensors
        tensors = iter(saved)
        arguments = [
            next(tensors) if tensor else value for value, tensor in zip(ctx.constants, ctx.is_tensor, strict=True)
        ]
        gradients = getattr(torch.ops.vfm_kernels, f"{name}_backward")(d_out, out, lse, *arguments)
        gradients = (gradients,) if num_heads_tensors == 1 else tuple(gradients)
        return *gradients, *[None] * (len(arguments) - num_heads_tensors + 1)

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
