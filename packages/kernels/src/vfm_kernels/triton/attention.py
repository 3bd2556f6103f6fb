"""Launch of attention, forward and backward.

The kernels are in files of their own: `attention_short`, `attention_stream` and `attention_backward`.
"""

# B batch, N tokens, H heads, D width of a head

import math
from typing import Any

import torch
from torch import Tensor

from vfm_kernels.pattern import Pattern
from vfm_kernels.triton.attention_backward import attention_backward_kernel, attention_delta_kernel
from vfm_kernels.triton.attention_short import attention_short_kernel
from vfm_kernels.triton.attention_stream import attention_stream_kernel
from vfm_kernels.triton.launch import block_of, launch, settings, with_adjacent_columns
from vfm_kernels.triton.rope import rotate_into

# EVA-02's width. With angles, kernels of wider heads spill registers, so another kernel rotates those heads before.
WIDEST_ROTATED = 64
TAIL = 16  # keys beyond a power of two that the short kernel handles in a block of their own


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: Pattern, *, short: bool
) -> None:
    """Write the output (B, N, H, D) and the softmax's sums (B, H, N) by the kernel for few tokens or that for many."""
    q, k, v = (with_adjacent_columns(tensor) for tensor in (q, k, v))
    (_short if short else _stream)(q, k, v, out, lse, pattern)


def attention_backward(
    d_out: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    pattern: Pattern,
) -> None:
    """Write the gradients into `d_q`, `d_k` and `d_v`, which must have equal strides."""
    d_out, q, k, v = (with_adjacent_columns(tensor) for tensor in (d_out, q, k, v))
    q, k = _rotated(q, pattern), _rotated(k, pattern)
    batch, num_tokens, num_heads, width = q.shape
    delta = torch.empty_like(lse)
    chosen = settings("attention_delta", width, q.device)
    launch(
        attention_delta_kernel,
        (-(-num_tokens // chosen["BLOCK_ROWS"]), num_heads, batch),
        q.device,
        out,
        d_out,
        delta,
        num_tokens,
        *d_out.stride()[:3],
        NUM_HEADS=num_heads,
        WIDTH=width,
        BLOCK_WIDTH=block_of(width),
        ALIGN=_alignment(d_out),
        **chosen,
    )
    chosen = settings("attention_backward", width, q.device)
    in_kernel = pattern if width <= WIDEST_ROTATED else pattern.without_rope()
    launch(
        attention_backward_kernel,
        _grid(q, pattern, chosen["BLOCK"]),
        q.device,
        q,
        k,
        v,
        d_out,
        lse,
        delta,
        d_q,
        d_k,
        d_v,
        pattern.cu_seqlens,
        *_table(q, in_kernel),
        num_tokens,
        pattern.num_prefix_tokens,
        pattern.scale,
        *_strides(q, k, v, d_out, d_q),
        *_table_strides(in_kernel),
        CAUSAL=pattern.causal,
        VARLEN=pattern.cu_seqlens is not None,
        **_rope(in_kernel),
        **_shared(q, k, v, d_out, d_q),
        **chosen,
    )
    if in_kernel is not pattern:
        for gradient in (d_q, d_k):
            _rotate(gradient, gradient, pattern, inverse=True)


def short_keys(num_tokens: int) -> tuple[int, bool]:
    """Return the keys in the block of the short kernel, and whether up to 16 more are in its tail."""
    whole = 1 << max(num_tokens.bit_length() - 1, 0)
    if whole >= TAIL and 0 < num_tokens - whole <= TAIL:
        return whole, True
    return max(block_of(num_tokens), TAIL), False


def _short(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: Pattern) -> None:
    batch, num_tokens, num_heads, width = q.shape
    if width > WIDEST_ROTATED:
        q, k, pattern = _rotated(q, pattern), _rotated(k, pattern), pattern.without_rope()
    num_keys, has_tail = short_keys(num_tokens)
    chosen = settings("attention_short", width, q.device)
    launch(
        attention_short_kernel,
        (num_heads, batch),
        q.device,
        q,
        k,
        v,
        out,
        lse,
        *_table(q, pattern),
        num_tokens,
        pattern.num_prefix_tokens,
        pattern.scale / math.log(2),
        *_strides(q, k, v),
        *_table_strides(pattern),
        NUM_KEYS=num_keys,
        HAS_TAIL=has_tail,
        **_rope(pattern),
        **_shared(q, k, v),
        **chosen,
    )


def _stream(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: Pattern) -> None:
    q, k = _rotated(q, pattern), _rotated(k, pattern)
    chosen = settings("attention_stream", q.shape[-1], q.device)
    launch(
        attention_stream_kernel,
        _grid(q, pattern, chosen["BLOCK_QUERIES"]),
        q.device,
        q,
        k,
        v,
        out,
        lse,
        pattern.cu_seqlens,
        q.shape[1],
        pattern.scale / math.log(2),
        *_strides(q, k, v),
        CAUSAL=pattern.causal,
        VARLEN=pattern.cu_seqlens is not None,
        **_shared(q, k, v),
        **chosen,
    )


def _rotated(heads: Tensor, pattern: Pattern) -> Tensor:
    """Return queries or keys rotated into a new buffer, or unchanged if the pattern has no angles."""
    if pattern.sin is None:
        return heads
    buffer = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    _rotate(buffer, heads, pattern)
    return buffer


def _rotate(target: Tensor, heads: Tensor, pattern: Pattern, *, inverse: bool = False) -> None:
    if pattern.sin is not None and pattern.cos is not None:
        options = (pattern.num_prefix_tokens, pattern.positions)
        rotate_into(target, heads, pattern.sin, pattern.cos, *options, inverse=inverse)


def _grid(q: Tensor, pattern: Pattern, block: int) -> tuple[int, int, int]:
    batch = len(q) if pattern.cu_seqlens is None else len(pattern.cu_seqlens) - 1
    return -(-pattern.max_seqlen // block), q.shape[2], batch


def _strides(*heads: Tensor) -> list[int]:
    return [stride for tensor in heads for stride in tensor.stride()[:3]]


def _table(q: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    """Return angles and positions; missing ones are replaced by a tensor that the kernel does not read."""
    positions = q if pattern.positions is None else pattern.positions.contiguous()
    return q if pattern.sin is None else pattern.sin, q if pattern.cos is None else pattern.cos, positions


def _table_strides(pattern: Pattern) -> tuple[int, ...]:
    if pattern.sin is None or pattern.cos is None:
        return (0, 0, 0)
    if pattern.sin.stride() != pattern.cos.stride():
        raise ValueError(
            f"expected sin and cos of equal strides, got {pattern.sin.stride()} and {pattern.cos.stride()}"
        )
    return pattern.sin.stride()


def _rope(pattern: Pattern) -> dict[str, bool]:
    return {"ROPE": pattern.sin is not None, "HAS_POSITIONS": pattern.positions is not None}


def _alignment(*heads: Tensor) -> int:
    return 8 if all(stride % 8 == 0 for stride in _strides(*heads)) else 1


def split(width: int) -> tuple[int, int]:
    """Return the widths of the one or two parts of a head: powers of two, as Triton needs, with the least padding."""
    for second in (16, 32):
        if 64 < width <= 64 + second:
            return 64, second
    return max(block_of(width), 16), 0


def _shared(*heads: Tensor) -> dict[str, Any]:
    q = heads[0]
    first, second = split(q.shape[-1])
    return {
        "NUM_HEADS": q.shape[2],
        "WIDTH": q.shape[-1],
        "WIDTH_1": first,
        "WIDTH_2": second,
        "ALIGN": _alignment(*heads),
        # Triton's default for fp32 is TF32, with an error of 1e-3; fp32 is for tests against the plain form.
        "PRECISION": "ieee" if q.dtype == torch.float32 else None,
        "UPCAST": q.device.type == "cpu" and q.dtype == torch.bfloat16,  # the interpreter cannot multiply bf16
    }
